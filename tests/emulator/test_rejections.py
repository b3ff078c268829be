"""What the service rejects before it creates a job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.driver import FLOW, Driver, code

HELLO = {"message": "hello"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "MISSING_MESSAGE"),
        ({"message": None, "parameters": {}}, "MISSING_MESSAGE"),
        ({"message": ""}, "MISSING_MESSAGE"),
        ({**HELLO, "parameters": {"attachments": []}}, "PARAMETER_NAME_RESERVED"),
        ({**HELLO, "tools": [{"name": "search"}]}, "TOOLS_REQUIRE_SYNC_EXECUTE"),
        ({**HELLO, "callbackUrl": "http://example.org/hook"}, "INVALID_CALLBACK_URL"),
        ({**HELLO, "callbackUrl": "https://"}, "INVALID_CALLBACK_URL"),
        ({**HELLO, "callbackUrl": "https://[::"}, "INVALID_CALLBACK_URL"),
        ({**HELLO, "callbackEvents": ["flow.started"]}, "INVALID_CALLBACK_EVENT"),
        ({**HELLO, "callbackEvents": [{}]}, "INVALID_CALLBACK_EVENT"),
        ({**HELLO, "parameters": {"_emulator": {"outcome": "lost"}}}, "EMULATOR_SPEC_INVALID"),
        ({**HELLO, "parameters": {"_emulator": 7}}, "EMULATOR_SPEC_INVALID"),
    ],
)
async def test_a_submission_against_the_rules(noukai: Driver, body: dict[str, Any], expected: str) -> None:
    """400 with the server's code, and there is no job."""
    assert code(await noukai.post(f"{FLOW}/jobs", json=body)) == (400, expected)
    assert await noukai.control("GET", "jobs") == []


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", ["body"]),
        (b"{", ["body"]),
        (b"[]", ["body"]),
        (b"\xff\xfe", ["body"]),
        (b'{"message": NaN}', ["body"]),
        (b'{"message": "\\ud800"}', ["body"]),
        (b'{"message": "x", "parameters": {"a": 1e999}}', ["body"]),
        (b"[" * 100_000, ["body"]),
        (b'{"message": "x", "parameters": ' + b'{"a":' * 450 + b"{}" + b"}" * 450 + b"}", ["body"]),
        (b'{"message": 7}', ["body", "message"]),
        (b'{"message": "x", "parameters": []}', ["body", "parameters"]),
        (b'{"message": "x", "trace": 1}', ["body", "trace"]),
        (b'{"message": "x", "blockOverrides": {"draft": 1}}', ["body", "blockOverrides", "draft"]),
        (b'{"message": "x", "callbackUrl": 1}', ["body", "callbackUrl"]),
        (b'{"message": "x", "callbackEvents": "flow.failed"}', ["body", "callbackEvents"]),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_body_of_the_wrong_form(noukai: Driver, content: bytes, where: list[str]) -> None:
    """422 with a list of what is wrong and where, and there is no job."""
    response = await noukai.post(
        f"{FLOW}/jobs", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == where
    assert await noukai.control("GET", "jobs") == []


@pytest.mark.parametrize("segment", ["v-1", "v01", "vx", "1", "production", "v1.0", "v9999999999"])
async def test_a_version_that_cannot_be(noukai: Driver, segment: str) -> None:
    """400 for any other version segment than `vN`."""
    assert code(await noukai.post(f"{FLOW}/{segment}/jobs", json=HELLO)) == (400, "INVALID_VERSION")


@pytest.mark.parametrize("slug", ["a", "-a", "a-", "Grade-3", "a_b", "a" * 51, "a%0Ab"])
async def test_a_slug_of_another_shape_names_no_flow(noukai: Driver, slug: str) -> None:
    """404, as of any flow that is not there."""
    assert code(await noukai.post(f"seq/acme/spelling/{slug}/jobs", json=HELLO)) == (404, "FLOW_NOT_FOUND")


async def test_a_session_id_is_a_uuid(noukai: Driver) -> None:
    """400 at the submission and at the lookup."""
    response = await noukai.post(f"{FLOW}/jobs", json=HELLO, headers={"X-Session-Id": "mine"})
    assert code(response) == (400, "SESSION_ID_INVALID")
    assert code(await noukai.get("seq/sessions/mine")) == (400, "SESSION_ID_INVALID")


async def test_a_missing_flow(noukai: Driver) -> None:
    """A script can remove a flow: a submission is rejected, and existing jobs can still be polled."""
    job_id = await noukai.submit()
    await noukai.script(missing=True)
    assert code(await noukai.post(f"{FLOW}/jobs", json=HELLO)) == (404, "FLOW_NOT_FOUND")
    assert (await noukai.poll(job_id))["status"] == "pending"

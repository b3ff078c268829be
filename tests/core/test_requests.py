"""The requests that go out."""

from __future__ import annotations

import json
from collections import UserList
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from noukai_core import InvalidInputError, JobRequest, NoukaiError, Submission
from tests.core.scripted_server import FLOW, ScriptedServer, accepted, kind_of, rejection, respond, state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.core.conftest import MakeClient

ROOT = "/api/v1/seq/acme/spelling/grade-3"


@pytest.mark.parametrize(
    ("version", "path"),
    [("production", "/jobs"), ("draft", "/v0/jobs"), (1, "/v1/jobs"), (27, "/v27/jobs")],
)
def test_the_version_is_in_the_path_and_never_in_the_body(
    scripted: MakeClient, server: ScriptedServer, version: str | int, path: str
) -> None:
    """Production has no version segment, a number its own, the draft v0; polls and cancels have none."""
    server.on("poll", state("running")).on("cancel", respond(202, json={}))
    job = scripted().flow(FLOW).job(message="hello", version=version)
    job.status()
    job.cancel()
    assert [request.url.path for request in server.requests] == [
        ROOT + path,
        ROOT + "/jobs/job-1",
        ROOT + "/jobs/job-1/cancel",
    ]
    assert "version" not in json.loads(server.requests[0].content)


def test_the_headers_name_the_client_and_the_contract(
    scripted: MakeClient, server: ScriptedServer, key: str
) -> None:
    """Every request carries the key, the contract's version, a user agent and `Accept: application/json`."""
    server.on("poll", state("running"))
    scripted().flow(FLOW).job(message="hello").status()
    for request in server.requests:
        assert request.headers["Authorization"] == f"Bearer {key}"
        assert request.headers["X-Noukai-API-Version"] == "2026-05-31"
        assert request.headers["Accept"] == "application/json"
        assert "noukai" in request.headers["User-Agent"]


def test_a_submission_carries_its_submission_id(scripted: MakeClient, server: ScriptedServer) -> None:
    """One fresh UUID goes out as session id and as idempotency key, another one for the next submission."""
    flow = scripted().flow(FLOW)
    flow.job(message="one")
    flow.job(message="two")
    identities = [request.headers["X-Session-Id"] for request in server.requests]
    assert identities == [request.headers["Idempotency-Key"] for request in server.requests]
    assert len({UUID(identity) for identity in identities}) == 2


def test_the_body_has_the_names_of_the_api(scripted: MakeClient, server: ScriptedServer) -> None:
    """The caller's values are sent under the API's names; missing ones are not sent as null."""
    flow = scripted().flow(FLOW)
    flow.job(
        message="hello",
        parameters={"grade": 3, "words": ["a", None]},
        block_overrides={"draft": {"temperature": 0}},
        trace=True,
        callback_url="https://hooks.example.com/noukai",
        callback_events=["flow.completed"],
    )
    flow.job(parameters={"grade": 3})
    full, small = (json.loads(request.content) for request in server.requests)
    assert full == {
        "message": "hello",
        "parameters": {"grade": 3, "words": ["a", None]},
        "blockOverrides": {"draft": {"temperature": 0}},
        "trace": True,
        "callbackUrl": "https://hooks.example.com/noukai",
        "callbackEvents": ["flow.completed"],
    }
    assert small["parameters"] == {"grade": 3}
    assert None not in small.values()


@pytest.mark.parametrize("words", [("a", "b"), UserList(["a", "b"])], ids=lambda words: type(words).__name__)
def test_any_sequence_is_a_list(scripted: MakeClient, server: ScriptedServer, words: Sequence[str]) -> None:
    """A parameter may be of any sequence type, as the outputs of a mapped Airflow task are."""
    scripted().flow(FLOW).job(parameters={"deep": {"words": words}})
    assert json.loads(server.requests[0].content)["parameters"] == {"deep": {"words": ["a", "b"]}}


def test_a_request_is_submitted_as_its_arguments_are(scripted: MakeClient, server: ScriptedServer) -> None:
    """`flow.submit(request)` sends what `flow.job(...)` sends, and `arguments()` are those of `job`."""
    request = JobRequest(
        FLOW,
        "hello",
        {"n": 1},
        {"step": {"model": "m"}},
        version=3,
        trace=True,
        callback_url="https://me.test/done",
        callback_events=["flow.failed"],
    )
    flow, submission = scripted().flow(FLOW), Submission.new()
    assert flow.submit(request, submission=submission).flow == FLOW
    flow.job(**request.arguments())
    first, second = server.requests
    assert (first.method, first.url, first.content) == (second.method, second.url, second.content)
    assert first.headers["Idempotency-Key"] == submission.id


def test_a_request_for_another_flow_is_refused(scripted: MakeClient, server: ScriptedServer) -> None:
    """A request goes only to the flow that it names, by its slug or in full."""
    client = scripted(org="acme", project="spelling")
    with pytest.raises(InvalidInputError, match=r"acme/spelling/other.*acme/spelling/grade-3"):
        client.flow("grade-3").submit(JobRequest("other", "hello"))
    assert server.requests == []
    assert client.flow(FLOW).submit(JobRequest("grade-3", "hello")).flow == FLOW


@pytest.mark.parametrize(
    "job_id", ["a?b=c", "a#b", "a b", "a%2Fb", "ü"], ids=["query", "fragment", "space", "escape", "umlaut"]
)
def test_a_job_id_is_one_escaped_segment(scripted: MakeClient, server: ScriptedServer, job_id: str) -> None:
    """An opaque id reaches the server as one path segment, or is rejected; it never becomes another URL."""
    server.on("poll", state("running", job_id))
    try:
        scripted().flow(FLOW).attach(job_id).status()
    except NoukaiError:
        assert server.requests == []
        return
    url = server.requests[0].url
    assert url.path == f"{ROOT}/jobs/{job_id}"
    assert (url.query, url.fragment) == (b"", "")
    assert url.raw_path.count(b"/") == ROOT.count("/") + 2


@pytest.mark.parametrize("job_id", [".", "..", "...", "%2e%2e"])
def test_a_job_id_of_dots_reaches_no_other_url(
    scripted: MakeClient, server: ScriptedServer, job_id: str
) -> None:
    """An id that a URL parser would treat as a parent folder is rejected, or stays one segment."""
    server.on("poll", state("running", job_id)).on("submit", accepted())
    try:
        scripted().flow(FLOW).attach(job_id).status()
    except NoukaiError:
        assert server.requests == []
        return
    assert server.requests[0].url.raw_path.startswith(ROOT.encode() + b"/jobs/")
    assert server.requests[0].url.raw_path.rsplit(b"/", 1)[-1] not in {b"", b".", b".."}


@pytest.mark.parametrize("base_url", ["https://noukai.test/api/v1", "https://noukai.test/api/v1/"])
def test_a_slash_at_the_end_of_the_base_url_changes_nothing(
    scripted: MakeClient, server: ScriptedServer, base_url: str
) -> None:
    """The base URL may end with a slash or not."""
    scripted(base_url=base_url).flow(FLOW).job(message="hello")
    assert str(server.requests[0].url) == f"https://noukai.test{ROOT}/jobs"


def test_each_kind_of_call_reaches_its_own_address(scripted: MakeClient, server: ScriptedServer) -> None:
    """The key check goes to keys/verify, the trace to the run of the job."""
    server.on("verify", respond(json={"org": "acme", "project": "spelling", "environment": "live"}))
    server.on("trace", rejection(403, "NO_KEYS_HERE"))
    client = scripted()
    info = client.verify_key()
    with pytest.raises(NoukaiError):
        client.flow(FLOW).attach("job-1").trace()
    assert (info.org, info.project, info.environment) == ("acme", "spelling", "live")
    assert kind_of(server.requests[0]) == "verify"
    assert server.requests[0].url.path == "/api/v1/keys/verify"
    assert server.requests[1].url.path == f"{ROOT}/runs/job-1/trace"

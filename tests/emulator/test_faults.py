"""Faults: which requests they affect, and whether those take effect."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from noukai_core.emulator._fault_responses import ConnectionDroppedError
from noukai_core.emulator._faults import FAULTS, Call, Faults
from tests.emulator.driver import FLOW, Driver, code

HELLO = {"message": "hello"}
BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, ConnectionDroppedError)


async def jobs(noukai: Driver) -> int:
    return len(await noukai.control("GET", "jobs"))


@pytest.mark.parametrize(("kind", "made"), [("drop_before", 0), ("drop_after", 1)])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_dropped_connection(noukai: Driver, kind: str, made: int, reset: bool) -> None:
    """There is no response, and the job was created or not; the server handles the next request normally."""
    await noukai.fault(kind, on="submit", reset=reset)
    with pytest.raises(BROKEN):
        await noukai.post(f"{FLOW}/jobs", json=HELLO)
    assert await jobs(noukai) == made
    assert [entry["status"] for entry in await noukai.control("GET", "requests")] == [None]
    await noukai.submit()


async def test_a_closed_and_a_reset_connection_differ(over_socket: Driver) -> None:
    """A client sees an end without a response in the one case, and a reset in the other."""
    await over_socket.fault("drop_before")
    with pytest.raises(httpx.RemoteProtocolError):
        await over_socket.get("keys/verify")
    await over_socket.fault("drop_before", reset=True)
    with pytest.raises(httpx.ReadError):
        await over_socket.get("keys/verify")


async def test_a_truncated_response(over_socket: Driver) -> None:
    """The response starts well and is cut off; the request took effect."""
    await over_socket.fault("truncated", on="submit")
    with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|peer closed"):
        await over_socket.post(f"{FLOW}/jobs", json=HELLO)
    assert await jobs(over_socket) == 1


async def test_a_large_truncated_response(over_socket: Driver) -> None:
    """The half that is sent arrives, however large it is."""
    await over_socket.script(after_polls=1, result_bytes=4_000_000)
    job_id = await over_socket.submit()
    await over_socket.fault("truncated", on="poll")
    received = 0
    with pytest.raises(httpx.RemoteProtocolError):
        async with over_socket.client.stream("GET", f"{FLOW}/jobs/{job_id}") as response:
            async for chunk in response.aiter_raw():
                received += len(chunk)
    assert 1_900_000 < received < 2_100_000


async def test_a_slow_response(over_socket: Driver) -> None:
    """The job exists at once, the response comes later."""
    await over_socket.fault("slow", on="submit", seconds=0.3)
    response = await over_socket.post(f"{FLOW}/jobs", json=HELLO)
    assert response.elapsed.total_seconds() >= 0.3
    await over_socket.fault("slow", on="submit", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        await over_socket.post(f"{FLOW}/jobs", json=HELLO, timeout=0.3)
    async with asyncio.timeout(20):
        while await jobs(over_socket) < 2:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("status", [400, 408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", ["json", "html"])
async def test_a_status(noukai: Driver, status: int, body: str) -> None:
    """The response has the status, as JSON or as a proxy's page, and the request had no effect."""
    await noukai.fault("status", status=status, body=body)
    response = await noukai.post(f"{FLOW}/jobs", json=HELLO)
    assert response.status_code == status
    assert ("json" if body == "json" else "html") in response.headers["Content-Type"]
    assert await jobs(noukai) == 0


async def test_a_status_with_words_of_its_own(noukai: Driver) -> None:
    """The code and the message can be chosen, and the request can take effect all the same."""
    await noukai.fault("status", status=503, code="BYOK_KEY_REJECTED", message="bad key", takes_effect=True)
    response = await noukai.post(f"{FLOW}/jobs", json=HELLO)
    assert response.json() == {"detail": {"code": "BYOK_KEY_REJECTED", "message": "bad key"}}
    assert await jobs(noukai) == 1


async def test_retry_after_in_both_forms(noukai: Driver) -> None:
    """The seconds as given, or a date that is not earlier than the given seconds."""
    await noukai.fault("status", status=429, retry_after=7)
    await noukai.fault("status", status=429, retry_after="http-date", seconds=30)
    assert (await noukai.get("keys/verify")).headers["Retry-After"] == "7"
    date = parsedate_to_datetime((await noukai.get("keys/verify")).headers["Retry-After"])
    assert 25 < (date - datetime.now(UTC)).total_seconds() <= 31


async def test_nonsense(noukai: Driver) -> None:
    """The response is the one that the test sets, and the job is created unless the test says otherwise."""
    await noukai.fault("nonsense", body="<html>", content_type="text/html", status=200)
    response = await noukai.post(f"{FLOW}/jobs", json=HELLO)
    assert (response.status_code, response.text) == (200, "<html>")
    assert response.headers["Content-Type"].startswith("text/html")
    assert await jobs(noukai) == 1
    await noukai.fault("nonsense", takes_effect=False)
    await noukai.post(f"{FLOW}/jobs", json=HELLO)
    assert await jobs(noukai) == 1


async def test_a_job_that_is_not_found(noukai: Driver) -> None:
    """By default it affects polls, with the code that fits the call."""
    job_id = await noukai.submit()
    await noukai.fault("not_found")
    assert code(await noukai.get(f"{FLOW}/jobs/{job_id}")) == (404, "JOB_NOT_FOUND")
    assert (await noukai.poll(job_id))["status"] == "pending"
    await noukai.fault("not_found", on="submit")
    assert code(await noukai.post(f"{FLOW}/jobs", json=HELLO)) == (404, "FLOW_NOT_FOUND")


@pytest.mark.parametrize(
    ("status", "detail"), [(404, "Not Found"), (405, "Method Not Allowed"), (501, "Not Found")]
)
async def test_a_server_without_cancel(noukai: Driver, status: int, detail: str) -> None:
    """A cancel gets the response of an unknown path, and the job is left running."""
    job_id = await noukai.submit()
    await noukai.fault("no_cancel", status=status, times=None)
    response = await noukai.post(f"{FLOW}/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()) == (status, {"detail": detail})
    assert (await noukai.poll(job_id))["status"] == "pending"


async def test_an_expired_key(noukai: Driver) -> None:
    """401 with `WWW-Authenticate`, though the key is a good one."""
    await noukai.fault("expired_key")
    response = await noukai.get("keys/verify")
    assert response.status_code == 401
    assert "invalid_token" in response.headers["WWW-Authenticate"]


async def test_a_redirect(noukai: Driver) -> None:
    """The location is the one that the test sets."""
    await noukai.fault("redirect", location="https://example.org/", status=302)
    response = await noukai.get("keys/verify")
    assert (response.status_code, response.headers["Location"]) == (302, "https://example.org/")


async def test_a_race_of_one_submission(noukai: Driver) -> None:
    """The job of the submission that met it is unknown for so long; other jobs are not."""
    await noukai.fault("race", seconds=10)
    late, prompt = await noukai.submit(), await noukai.submit()
    assert (await noukai.get(f"{FLOW}/jobs/{late}")).status_code == 404
    assert (await noukai.poll(prompt))["status"] == "pending"
    noukai.clock.advance(10)
    assert (await noukai.poll(late))["status"] == "completed"


async def test_a_fault_is_met_so_many_times(noukai: Driver) -> None:
    """Once by default, otherwise as often as set; and the fault counts the requests that it has affected."""
    await noukai.fault("status", status=500)
    await noukai.fault("status", status=503, times=2)
    assert [(await noukai.get("keys/verify")).status_code for _ in range(4)] == [500, 503, 503, 200]
    assert [(fault["met"], fault["times"]) for fault in await noukai.control("GET", "faults")] == [
        (1, 0),
        (2, 0),
    ]


async def test_a_fault_is_about_some_requests(noukai: Driver) -> None:
    """By call, by flow and by job; all others pass."""
    first, second = await noukai.submit(), await noukai.submit()
    await noukai.fault("status", status=500, on="poll", job_id=second, times=None)
    await noukai.fault("status", status=502, on="submit", flow="grade-4", times=None)
    await noukai.fault("status", status=504, on="submit", flow="other/spelling/grade-3", times=None)
    assert (await noukai.get(f"{FLOW}/jobs/{first}")).status_code == 200
    assert (await noukai.get(f"{FLOW}/jobs/{second}")).status_code == 500
    flows = ("acme/spelling/grade-3", "acme/spelling/grade-4", "other/spelling/grade-3")
    responses = [await noukai.post(f"seq/{flow}/jobs", json=HELLO) for flow in flows]
    assert [response.status_code for response in responses] == [202, 502, 504]


async def test_faults_are_switched_off(noukai: Driver) -> None:
    """After that every request passes."""
    await noukai.fault("status", times=None)
    await noukai.control("DELETE", "faults")
    assert (await noukai.get("keys/verify")).status_code == 200


async def test_a_fault_leaves_its_name_in_the_log(noukai: Driver) -> None:
    """The request log shows which of them met which fault."""
    await noukai.fault("status", status=500)
    for _ in range(2):
        await noukai.get("keys/verify")
    log = await noukai.control("GET", "requests")
    assert [(entry["fault"], entry["status"]) for entry in log] == [("status", 500), (None, 200)]


MIXED = {
    "kind": "mixed",
    "probability": 0.2,
    "of": [{"kind": "drop_before"}, {"kind": "drop_after"}, {"kind": "race"}],
}


def drawn(seed: int, order: list[int], *, polls: int = 5) -> dict[tuple[str, str, int], str | None]:
    """Which fault each request of some jobs meets, in whatever order the jobs come."""
    faults = Faults()
    faults.add({**MIXED, "seed": seed})
    met = {}
    for job in order:
        job_id = str(uuid4())
        calls = [("submit", None)] + [("poll", job_id)] * polls
        for number, (kind, named) in enumerate(calls):
            fault = faults.affecting(Call(kind, "acme/spelling/grade-3", named, f"job {job}"))
            met[f"job {job}", kind, number] = fault.kind if fault else None
    return met


def test_a_seed_reproduces_a_run() -> None:
    """The same submissions meet the same faults in any order; another seed gives other faults."""
    forth, back = drawn(7, list(range(200))), drawn(7, list(reversed(range(200))))
    assert forth == back
    assert forth != drawn(8, list(range(200)))


def test_a_probability_is_a_share_of_the_requests() -> None:
    """About that share of the requests meets the fault, and each part of a mixture that fits has its turn."""
    met = list(drawn(7, list(range(1000))).items())
    share = sum(kind is not None for _, kind in met) / len(met)
    assert 0.18 < share < 0.22
    assert {kind for (_, call, _), kind in met if call == "submit"} == {
        None,
        "drop_before",
        "drop_after",
        "race",
    }
    assert {kind for (_, call, _), kind in met if call == "poll"} == {None, "drop_before", "drop_after"}


async def test_requests_about_no_job_are_drawn_alike(noukai: Driver) -> None:
    """What was submitted between them does not change what they meet."""

    async def run(*, submitting: bool) -> list[int]:
        await noukai.control("POST", "reset")
        await noukai.fault("status", on="verify", probability=0.5, seed=3)
        statuses = []
        for number in range(10):
            if submitting:
                await noukai.submit(message=f"job {number}")
            statuses.append((await noukai.get("keys/verify")).status_code)
        return statuses

    assert await run(submitting=True) == await run(submitting=False)


async def test_a_seed_reproduces_a_run_over_http(noukai: Driver) -> None:
    """The same submissions and polls meet the same faults after a reset, although their ids are new."""

    async def run() -> list[int]:
        await noukai.control("POST", "reset")
        await noukai.script(outcome="never")
        await noukai.fault("status", on="poll", status=503, probability=0.5, seed=3)
        ids = [await noukai.submit(message=f"job {number}") for number in range(5)]
        return [(await noukai.get(f"{FLOW}/jobs/{job_id}")).status_code for job_id in ids for _ in range(4)]

    first = await run()
    assert {200, 503} == set(first)
    assert await run() == first


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "explode"}, "drop_before"),
    ({}, "kind"),
    ({"kind": []}, "one of"),
    ({"kind": "slow", "on": "pole"}, "submit, poll"),
    ({"kind": "slow", "times": -1}, "whole number"),
    ({"kind": "slow", "seconds": "long"}, "number of seconds"),
    ({"kind": "slow", "probability": 20}, "from 0 to 1"),
    ({"kind": "slow", "seed": "x"}, "whole number"),
    ({"kind": "slow", "status": 500}, "'status'"),
    ({"kind": "status", "status": 42}, "200 to 599"),
    ({"kind": "status", "body": "xml"}, "json or html"),
    ({"kind": "status", "retry_after": "٣"}, "a number of seconds"),
    ({"kind": "redirect", "location": "a\r\nb: c"}, "ASCII"),
    ({"kind": "nonsense", "content_type": "ö"}, "ASCII"),
    ({"kind": "mixed"}, "`of`"),
    ({"kind": "mixed", "of": [{"kind": "mixed"}]}, "mixed"),
    ({"kind": "mixed", "of": [{"kind": "explode"}]}, "explode"),
]


@pytest.mark.parametrize(("wanted", "words"), BAD, ids=lambda value: json.dumps(value)[:40])
async def test_a_fault_that_makes_no_sense(noukai: Driver, wanted: dict[str, Any], words: str) -> None:
    """400, with what is wrong and what is allowed; nothing is switched on."""
    response = await noukai.command("POST", "faults", wanted)
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert await noukai.control("GET", "faults") == []


@pytest.mark.parametrize("kind", sorted(FAULTS))
async def test_every_kind_of_fault_leaves_the_server_in_good_order(over_socket: Driver, kind: str) -> None:
    """On every call of the API; afterwards the server responds as before."""
    options: dict[str, Any] = {"of": [{"kind": "status"}]} if kind == "mixed" else {}
    if kind == "slow":
        options["seconds"] = 0.01
    await over_socket.script(outcome="never")
    job_id = await over_socket.submit()
    await over_socket.fault(kind, on="any", times=None, **options)
    paths = [
        f"{FLOW}/jobs/{job_id}",
        f"{FLOW}/runs/{job_id}/trace",
        f"seq/sessions/{uuid4()}",
        "keys/verify",
        "flow-runs",
    ]
    for path in paths:
        try:
            await over_socket.get(path)
        except httpx.TransportError:
            assert kind in ("drop_before", "drop_after", "truncated")
    await over_socket.control("DELETE", "faults")
    assert (await over_socket.poll(job_id))["status"] == "pending"
    assert (await over_socket.get("keys/verify")).status_code == 200

"""The documented responses of the service, call by call."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.emulator.driver import FLOW, Driver, code


async def test_a_submission_is_accepted(noukai: Driver) -> None:
    """202, with the job's id, `started`, the flow's id and the number of its blocks."""
    response = await noukai.post(f"{FLOW}/jobs", json={"message": "hello"})
    assert response.status_code == 202
    assert set(response.json()) == {"executionId", "status", "flowId", "blockCount"}
    assert response.json()["status"] == "started"
    assert response.json()["blockCount"] == 1


@pytest.mark.parametrize(
    ("segment", "version"),
    [("", "production"), ("/v0", "draft"), ("/v7", 7)],
    ids=["production", "draft", "number"],
)
async def test_the_version_is_in_the_path(noukai: Driver, segment: str, version: Any) -> None:
    """Production has no segment, `v0` is the draft, `vN` a published version; a poll has none."""
    response = await noukai.post(f"{FLOW}{segment}/jobs", json={"message": "hello"})
    job_id = response.json()["executionId"]
    assert (await noukai.job(job_id))["version"] == version
    assert (await noukai.poll(job_id))["status"] == "pending"


async def test_without_a_script_a_job_completes_after_a_second(noukai: Driver) -> None:
    """It is pending, then running, and after a second completed with its input as the result."""
    job_id = await noukai.submit(message="hello", parameters={"grade": 3})
    assert (await noukai.poll(job_id))["status"] == "pending"
    noukai.clock.advance(0.5)
    running = await noukai.poll(job_id)
    assert running["status"] == "running"
    assert "result" not in running
    noukai.clock.advance(0.5)
    completed = await noukai.poll(job_id)
    assert completed["status"] == "completed"
    assert completed["executionId"] == job_id
    assert completed["result"] == {"message": "hello", "parameters": {"grade": 3}}
    assert (await noukai.job(job_id))["states"] == ["pending", "running", "completed"]


async def test_a_poll_has_the_three_times(noukai: Driver) -> None:
    """Created, started and completed are ISO 8601 with a zone, each there as soon as it has come."""
    job_id = await noukai.submit()
    pending = await noukai.poll(job_id)
    assert (pending["startedAt"], pending["completedAt"]) == (None, None)
    noukai.clock.advance(2)
    times = await noukai.poll(job_id)
    created, started, completed = (
        datetime.fromisoformat(times[name]) for name in ("createdAt", "startedAt", "completedAt")
    )
    assert created.tzinfo is not None
    assert created < started < completed
    assert (completed - created).total_seconds() == pytest.approx(1.0)


async def test_every_response_has_a_request_id(noukai: Driver) -> None:
    """Every response, good or bad, carries a unique `X-Request-ID`, which the request log has too."""
    responses = [
        await noukai.post(f"{FLOW}/jobs", json={"message": "hello"}),
        await noukai.get(f"{FLOW}/jobs/job_unknown"),
        await noukai.get("nowhere"),
    ]
    ids = [response.headers["X-Request-ID"] for response in responses]
    assert len(set(ids)) == 3
    assert [entry["request_id"] for entry in await noukai.control("GET", "requests")] == ids


@pytest.mark.parametrize("path", ["jobs/job_unknown", "jobs/job_unknown/cancel"])
async def test_an_unknown_job(noukai: Driver, path: str) -> None:
    """404 with the code of an unknown job, for a poll and for a cancel."""
    response = await (noukai.post if path.endswith("cancel") else noukai.get)(f"{FLOW}/{path}")
    assert code(response) == (404, "JOB_NOT_FOUND")


async def test_a_job_belongs_to_its_flow(noukai: Driver) -> None:
    """Under another flow's path the job is unknown."""
    job_id = await noukai.submit()
    response = await noukai.get(f"seq/acme/spelling/grade-4/jobs/{job_id}")
    assert code(response) == (404, "JOB_NOT_FOUND")


async def test_a_job_has_no_version_in_its_path(noukai: Driver) -> None:
    """A poll with a version segment finds no route."""
    job_id = await noukai.submit()
    assert (await noukai.get(f"{FLOW}/v1/jobs/{job_id}")).status_code == 404


async def test_cancel_ends_a_job(noukai: Driver) -> None:
    """A cancel is accepted, and the job is cancelled from then on."""
    job_id = await noukai.submit()
    assert (await noukai.post(f"{FLOW}/jobs/{job_id}/cancel")).status_code == 202
    noukai.clock.advance(10)
    assert (await noukai.poll(job_id))["status"] == "cancelled"
    assert (await noukai.job(job_id))["states"] == ["pending", "cancelled"]


async def test_cancel_of_a_finished_job_changes_nothing(noukai: Driver) -> None:
    """409, and the job stays completed; the same for a second cancel."""
    job_id = await noukai.submit()
    noukai.clock.advance(1)
    assert code(await noukai.post(f"{FLOW}/jobs/{job_id}/cancel")) == (409, "JOB_ALREADY_FINISHED")
    assert (await noukai.poll(job_id))["status"] == "completed"


async def test_a_session_lists_what_was_submitted_under_it(noukai: Driver) -> None:
    """The session's executions with flow, trigger, state and times, oldest first, and no others."""
    session_id = str(uuid4())
    first = await noukai.submit(headers={"X-Session-Id": session_id})
    second = await noukai.submit(headers={"X-Session-Id": session_id.upper()})
    await noukai.submit(headers={"X-Session-Id": str(uuid4())})
    response = (await noukai.get(f"seq/sessions/{session_id}")).json()
    assert response["sessionId"] == session_id
    assert [execution["executionId"] for execution in response["executions"]] == [first, second]
    execution = response["executions"][0]
    assert (execution["slug"], execution["triggerType"], execution["status"]) == ("grade-3", "job", "pending")
    assert execution["snapshotsAvailable"] is False


async def test_a_session_with_nothing_in_it(noukai: Driver) -> None:
    """404 until something is there."""
    assert code(await noukai.get(f"seq/sessions/{uuid4()}")) == (404, "SESSION_NOT_FOUND")


async def test_the_404_race(noukai: Driver) -> None:
    """Until a worker has written the run down, neither the job nor its session is known."""
    session_id = str(uuid4())
    await noukai.script(visible_after_seconds=3, after_seconds=2)
    job_id = await noukai.submit(headers={"X-Session-Id": session_id})
    paths = [f"{FLOW}/jobs/{job_id}", f"seq/sessions/{session_id}", f"{FLOW}/runs/{job_id}/trace"]
    assert [(await noukai.get(path)).status_code for path in paths] == [404, 404, 404]
    assert code(await noukai.post(f"{FLOW}/jobs/{job_id}/cancel")) == (404, "JOB_NOT_FOUND")
    assert (await noukai.get("flow-runs", params={"flow_id": "any"})).json() == {"runs": []}
    noukai.clock.advance(3)
    assert [(await noukai.get(path)).status_code for path in paths] == [200, 200, 200]
    assert (await noukai.poll(job_id))["status"] == "completed"


@pytest.mark.parametrize("environment", ["live", "test"])
async def test_a_key_is_verified(noukai: Driver, environment: str) -> None:
    """The response has the key's org, project and environment."""
    headers = {"Authorization": f"Bearer nk_{environment}_12345678_{'x' * 32}"}
    response = await noukai.get("keys/verify", headers=headers)
    assert response.status_code == 200
    assert response.json()["environment"] == environment
    assert {"org", "project"} <= set(response.json())


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer sk_live_1", "Basic nk_live_1"])
async def test_a_bad_key(noukai: Driver, authorization: str) -> None:
    """401 with `WWW-Authenticate` on every call, and nothing is done."""
    headers = {"Authorization": authorization}
    for response in (
        await noukai.get("keys/verify", headers=headers),
        await noukai.post(f"{FLOW}/jobs", json={"message": "hello"}, headers=headers),
    ):
        assert code(response) == (401, "INVALID_API_KEY")
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
    assert await noukai.control("GET", "jobs") == []


async def test_runs_are_listed_newest_first(noukai: Driver) -> None:
    """By flow and state, up to the limit."""
    await noukai.script(after_seconds=1)
    await noukai.script("grade-4", outcome="never")
    jobs = [await noukai.submit() for _ in range(3)]
    other = await noukai.submit("seq/acme/spelling/grade-4")
    noukai.clock.advance(1)

    async def listed(job_id: str, **params: Any) -> list[str]:
        flow_id = (await noukai.get(f"flow-runs/{job_id}/trace")).json()["flowRun"]["flowId"]
        listed = await noukai.get("flow-runs", params={"flow_id": flow_id, **params})
        return [run["id"] for run in listed.json()["runs"]]

    assert await listed(jobs[0]) == [*reversed(jobs)]
    assert await listed(jobs[0], limit=2) == [jobs[2], jobs[1]]
    assert await listed(jobs[0], status="completed", limit=1) == [jobs[2]]
    assert await listed(other) == [other]
    assert await listed(other, status="failed") == []


async def test_the_list_of_runs_is_that_of_a_flow(noukai: Driver) -> None:
    """As the documentation says, the id of the flow is required."""
    response = await noukai.get("flow-runs")
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "flow_id"]


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"limit": "9" * 5000}, {"status": "pending"}]
)
async def test_a_list_of_runs_that_cannot_be(noukai: Driver, params: dict[str, Any]) -> None:
    """422, with the parameter that is wrong."""
    response = await noukai.get("flow-runs", params={"flow_id": "any", **params})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", *params]


@pytest.mark.parametrize("path", [FLOW + "/runs/{}/trace", "flow-runs/{}/trace"])
async def test_a_trace_has_the_run_and_its_steps(noukai: Driver, path: str) -> None:
    """Both forms of the path give the run and its steps, with tokens and cost."""
    step = {"stepId": "draft", "modelUsed": "small", "tokens": {"prompt": 5, "completion": 7, "total": 12}}
    await noukai.script(steps=[{**step, "costUsd": "0.25"}, {"stepId": "check"}])
    job_id = await noukai.submit()
    noukai.clock.advance(1)
    trace = (await noukai.get(path.format(job_id))).json()
    run = trace["flowRun"]
    assert (run["id"], run["status"], run["triggerType"], run["stepCount"]) == (job_id, "completed", "job", 2)
    assert run["durationMs"] == 900
    draft, check = trace["steps"]
    assert {name: draft[name] for name in step} == step
    assert (draft["costUsd"], draft["attempt"], draft["status"], draft["durationMs"]) == (
        "0.25",
        1,
        "completed",
        450,
    )
    assert (check["stepId"], check["status"]) == ("check", "completed")


@pytest.mark.parametrize(
    ("seconds", "outcome", "statuses"),
    [
        (0.0, "completed", []),
        (0.2, "completed", ["running"]),
        (0.8, "completed", ["completed", "running"]),
        (1.0, "completed", ["completed", "completed"]),
        (1.0, "failed", ["completed", "failed"]),
        (1.0, "cancelled", ["completed", "skipped"]),
    ],
)
async def test_a_trace_grows_with_the_run(
    noukai: Driver, seconds: float, outcome: str, statuses: list[str]
) -> None:
    """Only steps that have begun are there; the one under way ends as the run does."""
    await noukai.script(steps=[{"stepId": "draft"}, {"stepId": "check"}], outcome=outcome)
    job_id = await noukai.submit()
    noukai.clock.advance(seconds)
    steps = (await noukai.get(f"{FLOW}/runs/{job_id}/trace")).json()["steps"]
    assert [step["status"] for step in steps] == statuses


@pytest.mark.parametrize("path", [FLOW + "/runs/x/trace", "flow-runs/x/trace", FLOW + "/runs/x/trace/stream"])
async def test_a_trace_of_an_unknown_run(noukai: Driver, path: str) -> None:
    """404 with the code of an unknown run."""
    assert code(await noukai.get(path)) == (404, "RUN_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "nowhere", 404), ("DELETE", FLOW + "/jobs", 405)]
)
async def test_what_is_no_call(noukai: Driver, method: str, path: str, status: int) -> None:
    """An unknown path and a wrong method get a JSON response."""
    response = await noukai.client.request(method, path)
    assert response.status_code == status
    assert response.json() == {"detail": {404: "Not Found", 405: "Method Not Allowed"}[status]}


async def test_two_submissions_with_one_idempotency_key_are_two_jobs(noukai: Driver) -> None:
    """The service does not document the header, so it is written down and no more."""
    headers = {"Idempotency-Key": str(uuid4())}
    jobs = [await noukai.submit(headers=headers) for _ in range(2)]
    assert jobs[0] != jobs[1]
    assert (await noukai.job(jobs[0]))["idempotency_key"] == headers["Idempotency-Key"]


async def test_what_was_submitted_is_kept(noukai: Driver) -> None:
    """A test can see everything that the client sent, and which webhooks the service would have sent."""
    session_id = str(uuid4())
    body = {
        "message": "hello",
        "parameters": {"grade": 3},
        "blockOverrides": {"draft": {"model": "small"}},
        "trace": True,
        "callbackUrl": "https://example.org/hook",
        "callbackEvents": ["flow.completed"],
    }
    job_id = await noukai.submit(headers={"X-Session-Id": session_id}, **body)
    before = await noukai.job(job_id)
    assert before["flow"] == "acme/spelling/grade-3"
    assert before["session_id"] == session_id
    assert [before["message"], before["parameters"], before["block_overrides"], before["trace"]] == [
        "hello",
        {"grade": 3},
        {"draft": {"model": "small"}},
        True,
    ]
    assert (before["webhooks"], before["outcome"]) == ([], None)
    noukai.clock.advance(1)
    (webhook,) = (await noukai.job(job_id))["webhooks"]
    assert (webhook["event"], webhook["url"]) == ("flow.completed", "https://example.org/hook")


@pytest.mark.parametrize(
    ("outcome", "events", "sent"),
    [("failed", None, ["flow.failed"]), ("failed", ["flow.completed"], []), ("cancelled", None, [])],
)
async def test_which_webhooks_are_due(
    noukai: Driver, outcome: str, events: list[str] | None, sent: list[str]
) -> None:
    """Both events by default, only the chosen ones otherwise, and none for a cancelled job."""
    await noukai.script(outcome=outcome)
    job_id = await noukai.submit(
        message="hello", callbackUrl="https://example.org/hook", callbackEvents=events
    )
    noukai.clock.advance(1)
    assert [webhook["event"] for webhook in (await noukai.job(job_id))["webhooks"]] == sent

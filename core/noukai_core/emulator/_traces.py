"""The steps of a run, for the trace and for the live trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from noukai_core.emulator._jobs import Job, timestamp

# The status of the last step that has started, by the state of the job.
_LAST_STEP = {"running": "running", "completed": "completed", "failed": "failed", "cancelled": "skipped"}
_ONE_STEP: tuple[dict[str, Any], ...] = ({"stepId": "echo"},)


def trace(job: Job, now: float) -> dict[str, Any]:
    """Return the trace of a run up to now."""
    started = job.started_at(now)
    ended = job.end.at if job.end else None
    run = {
        "id": job.id,
        "flowId": job.flow_id,
        "status": job.state(now),
        "triggerType": "job",
        "startedAt": timestamp(started),
        "completedAt": timestamp(ended),
        "durationMs": _milliseconds(started, ended),
        "stepCount": len(_scripted(job)),
    }
    return {"flowRun": run, "steps": list(steps(job, now))}


def steps(job: Job, now: float) -> Iterator[dict[str, Any]]:
    """Yield the steps that have started. They divide the run evenly; the script overrides their fields."""
    started = job.started_at(now)
    if started is None:
        return
    scripted, share = _scripted(job), job.share(now)
    begun = min(len(scripted), int(share * len(scripted)) + 1)
    until = job.end.at if job.end else now
    whole = (until - started) / share if share else 0.0
    for index, step in enumerate(scripted[:begun]):
        begin = started + whole * index / len(scripted)
        last = index == begun - 1
        end = until if last else started + whole * (index + 1) / len(scripted)
        over = not last or job.end is not None
        yield {
            "stepId": f"step-{index + 1}",
            "attempt": 1,
            "status": _LAST_STEP[job.state(now)] if last else "completed",
            "startedAt": timestamp(begin),
            "completedAt": timestamp(end) if over else None,
            "durationMs": _milliseconds(begin, end) if over else None,
            "modelUsed": "emulator",
            "tokens": {"prompt": 8, "completion": 4, "total": 12} if over else None,
            "costUsd": "0.00012" if over else None,
            **step,
        }


def events(job: Job, now: float) -> Iterator[str]:
    """Yield the live trace up to now. Later calls only add events.

    There is no event for a failed or cancelled run: its trace just ends.
    """
    if job.started_at(now) is None:
        return
    yield _event(
        "run_started", {"executionId": job.id, "flowId": job.flow_id, "stepCount": len(_scripted(job))}
    )
    for index, step in enumerate(steps(job, now)):
        name = {"executionId": job.id, "stepId": step["stepId"], "attempt": step["attempt"]}
        yield _event("step_started", {**name, "stepIndex": index})
        if step["status"] == "completed":
            yield _event("step_output", {**name, "outputData": step.get("outputContext")})
            cost = {key: step[key] for key in ("durationMs", "modelUsed", "tokens", "costUsd")}
            yield _event("step_completed", {**name, **cost})
        elif step["status"] == "failed":
            yield _event("step_error", {**name, "error": step.get("error") or {"message": str(job.error())}})
    if job.end is not None and job.end.state == "completed":
        yield _event("flow_completed", {"executionId": job.id, "result": job.result()})


def _scripted(job: Job) -> list[dict[str, Any]]:
    return list(job.spec.steps or _ONE_STEP)


def _milliseconds(begin: float | None, end: float | None) -> int | None:
    return None if begin is None or end is None else max(0, round((end - begin) * 1000))


def _event(kind: str, payload: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'eventType': kind, **payload})}\n\n"

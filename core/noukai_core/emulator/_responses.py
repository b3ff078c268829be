"""The bodies of the service's responses: jobs, sessions and runs, and its rejections."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from noukai_core.emulator._jobs import Job, timestamp

CALLBACK_EVENTS = {"completed": "flow.completed", "failed": "flow.failed"}


class RejectionError(Exception):
    """The service rejects a request."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body: dict[str, Any] = {"detail": {"code": code, "message": message}}


class InvalidBodyError(RejectionError):
    """The body does not match the service's schema: a list of errors, as FastAPI returns it."""

    def __init__(self, where: tuple[str, ...], message: str) -> None:
        super().__init__(422, "", message)
        self.body = {"detail": [{"type": "value_error", "loc": list(where), "msg": message}]}


def unauthorised(reason: str) -> RejectionError:
    """Return the rejection of a key."""
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    return RejectionError(401, "INVALID_API_KEY", reason, {"WWW-Authenticate": challenge})


def no_such(kind: str) -> RejectionError:
    """Return the rejection of an unknown flow, job, run or session."""
    return RejectionError(404, f"{kind.upper()}_NOT_FOUND", f"No such {kind}.")


def accepted(job: Job) -> dict[str, Any]:
    """Return the response to a submission."""
    return {
        "executionId": job.id,
        "status": "started",
        "flowId": job.flow_id,
        "blockCount": len(job.spec.steps) or 1,
    }


def status(job: Job, now: float) -> dict[str, Any]:
    """Return the response to a poll."""
    state = job.state(now)
    response: dict[str, Any] = {
        "executionId": job.id,
        "status": state,
        "createdAt": timestamp(job.submitted_at),
        "startedAt": timestamp(job.started_at(now)),
        "completedAt": timestamp(job.end.at) if job.end else None,
        "progress": job.progress(now),
    }
    if state == "completed":
        response["result"] = job.result()
    if state == "failed":
        response["error"] = job.error()
    return response


def session(session_id: str, jobs: list[Job], now: float) -> dict[str, Any]:
    """Return the list of what was submitted under a session."""
    return {"sessionId": session_id, "executions": [_execution(job, now) for job in jobs]}


def _execution(job: Job, now: float) -> dict[str, Any]:
    return {
        "executionId": job.id,
        "flowId": job.flow_id,
        "slug": job.slug,
        "triggerType": "job",
        "status": job.state(now),
        "startedAt": timestamp(job.started_at(now)),
        "completedAt": timestamp(job.end.at) if job.end else None,
        "traceCaptureMode": "off",
        "snapshotsAvailable": False,
        "steps": [],
    }


def run(job: Job, now: float) -> dict[str, Any]:
    """Return one row of the list of runs."""
    return {
        "id": job.id,
        "flowId": job.flow_id,
        "status": job.state(now),
        "triggerType": "job",
        "createdAt": timestamp(job.submitted_at),
        "startedAt": timestamp(job.started_at(now)),
        "completedAt": timestamp(job.end.at) if job.end else None,
    }


def entry(job: Job, now: float) -> dict[str, Any]:
    """Return everything about a job, for the control API."""
    versions = {None: "production", 0: "draft"}
    return {
        "id": job.id,
        "flow": job.flow,
        "slug": job.slug,
        "version": versions.get(job.version, job.version),
        "state": job.state(now),
        "states": job.states(now),
        "outcome": job.end.state if job.end else None,
        "created_at": timestamp(job.submitted_at),
        "started_at": timestamp(job.started_at(now)),
        "completed_at": timestamp(job.end.at) if job.end else None,
        "session_id": job.session_id,
        "idempotency_key": job.idempotency_key,
        "message": job.body.get("message"),
        "parameters": job.body.get("parameters"),
        "block_overrides": job.body.get("blockOverrides"),
        "trace": bool(job.body.get("trace")),
        "callback_url": job.body.get("callbackUrl"),
        "callback_events": job.body.get("callbackEvents"),
        "webhooks": _webhooks(job),
        "polls": job.polls,
    }


def _webhooks(job: Job) -> list[dict[str, Any]]:
    """Return the webhooks that the service would have sent. The emulator sends none."""
    event = CALLBACK_EVENTS.get(job.end.state) if job.end else None
    url = job.body.get("callbackUrl")
    events = job.body.get("callbackEvents") or CALLBACK_EVENTS.values()
    if url is None or event is None or event not in events or job.end is None:
        return []
    delivery = str(uuid5(NAMESPACE_DNS, f"{job.id}:{event}"))
    return [{"url": url, "event": event, "delivery": delivery, "timestamp": int(job.end.at)}]

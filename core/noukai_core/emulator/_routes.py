"""The calls of Noukai's API, one method each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from noukai_core.emulator import _responses, _submissions, _traces
from noukai_core.emulator._exchange import API_PATH, Exchange, route
from noukai_core.emulator._fault_responses import faulty_events
from noukai_core.emulator._job_store import AlreadyFinishedError
from noukai_core.emulator._jobs import Job
from noukai_core.emulator._responses import InvalidBodyError, RejectionError, no_such
from noukai_core.emulator._script import Spec
from noukai_core.emulator._service import Service

RACE_SECONDS = 5.0

# The interval, in seconds, at which a live trace is updated while only time passes.
_STREAM_INTERVAL = 0.2
_STALL_SECONDS = 24 * 3600.0
_FLOW = API_PATH + "/seq/{org}/{project}/{slug}"
_RUN_STATES = ("running", "completed", "failed", "cancelled")


def api_routes(service: Service) -> list[Route]:
    """Return the routes of the API."""
    api = _Api(service)
    return [
        route(service, "submit", _FLOW + "/jobs", api.submit, "POST"),
        route(service, "submit", _FLOW + "/{version}/jobs", api.submit, "POST"),
        route(service, "poll", _FLOW + "/jobs/{job_id}", api.poll),
        route(service, "cancel", _FLOW + "/jobs/{job_id}/cancel", api.cancel, "POST"),
        route(service, "trace", _FLOW + "/runs/{job_id}/trace", api.trace),
        route(service, "stream", _FLOW + "/runs/{job_id}/trace/stream", api.stream),
        route(service, "session", API_PATH + "/seq/sessions/{session_id}", api.session),
        route(service, "verify", API_PATH + "/keys/verify", api.verify),
        route(service, "runs", API_PATH + "/flow-runs", api.runs),
        route(service, "trace", API_PATH + "/flow-runs/{job_id}/trace", api.trace),
    ]


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs = service.jobs

    async def submit(self, exchange: Exchange) -> Response:
        request, parts = exchange.request, exchange.request.path_params
        flow = _submissions.flow_path(parts["org"], parts["project"], parts["slug"])
        version = _submissions.version_number(parts.get("version"))
        session_id = _submissions.session_id(request.headers.get("X-Session-Id"))
        body = _submissions.parse_body(await request.body())
        given = self._service.script.merged(flow, _submissions.job_spec(body))
        if exchange.fault is not None and exchange.fault.kind == "race":
            given["visible_after_seconds"] = exchange.fault.options.get("seconds", RACE_SECONDS)
        spec = Spec.of(given)
        if spec.missing:
            raise no_such("flow")
        key = request.headers.get("Idempotency-Key")
        job = self._jobs.of_idempotency_key(key) if self._service.honours_idempotency_key and key else None
        if job is None:
            now = self._service.now()
            job = Job(f"job_{uuid4().hex}", flow, now, spec, body, version, session_id, key)
            self._jobs.add(job)
        self._service.subjects[job.id] = exchange.subject
        self._service.log.created(exchange.entry, job.id)
        return JSONResponse(_responses.accepted(job), 202)

    async def poll(self, exchange: Exchange) -> Response:
        job = self._job(exchange.request)
        self._jobs.poll(job)
        if job.end is not None:
            self._service.changes.notify()
        return JSONResponse(_responses.status(job, self._service.now()))

    async def cancel(self, exchange: Exchange) -> Response:
        job = self._job(exchange.request)
        try:
            self._jobs.finish(job, "cancelled", {})
        except AlreadyFinishedError as finished:
            raise RejectionError(409, "JOB_ALREADY_FINISHED", str(finished)) from None
        self._service.changes.notify()
        await self._service.changes.pause(job.spec.cancel_seconds)
        return JSONResponse(_responses.status(job, self._service.now()), 202)

    async def session(self, exchange: Exchange) -> Response:
        session_id = _submissions.session_id(exchange.request.path_params["session_id"]) or ""
        now = self._service.now()
        jobs = [job for job in self._jobs.of_session(session_id) if job.visible(now)]
        if not jobs:
            raise no_such("session")
        return JSONResponse(_responses.session(session_id, jobs, now))

    async def verify(self, exchange: Exchange) -> Response:
        live = exchange.request.headers["Authorization"].partition(" ")[2].startswith("nk_live_")
        key = {"valid": True, "org": "emulator", "project": "local"}
        return JSONResponse({**key, "environment": "live" if live else "test"})

    async def runs(self, exchange: Exchange) -> Response:
        query = exchange.request.query_params
        flow_id, state = query.get("flow_id"), query.get("status")
        if flow_id is None:
            raise InvalidBodyError(("query", "flow_id"), "Field required")
        if state is not None and state not in _RUN_STATES:
            raise InvalidBodyError(("query", "status"), f"Input should be one of {', '.join(_RUN_STATES)}")
        now = self._service.now()

        def matches(job: Job) -> bool:
            return job.visible(now) and flow_id == job.flow_id and state in (None, job.state(now))

        jobs = self._jobs.newest(matches, _limit(query.get("limit", "20")))
        return JSONResponse({"runs": [_responses.run(job, now) for job in jobs]})

    async def trace(self, exchange: Exchange) -> Response:
        return JSONResponse(_traces.trace(self._job(exchange.request, "run"), self._service.now()))

    async def stream(self, exchange: Exchange) -> Response:
        events = self._events(self._job(exchange.request, "run"))
        return StreamingResponse(
            faulty_events(events, exchange.fault, lambda: self._service.changes.pause(_STALL_SECONDS)),
            media_type="text/event-stream",
        )

    async def _events(self, job: Job) -> AsyncIterator[str]:
        changes, sent = self._service.changes, 0
        while not changes.stopped:
            now = self._service.now()
            job.update(now)
            happened, ended = list(_traces.events(job, now)), job.end is not None
            for event in happened[sent:]:
                yield event
            if ended:  # not meanwhile: a slow reader takes its time over each event
                return
            sent = len(happened)
            await changes.wait(_STREAM_INTERVAL)

    def _job(self, request: Request, kind: str = "job") -> Job:
        parts = request.path_params
        job = self._jobs.find(parts["job_id"])
        if job is None or not job.visible(self._service.now()):
            raise no_such(kind)
        if "slug" in parts and job.flow != f"{parts['org']}/{parts['project']}/{parts['slug']}":
            raise no_such(kind)
        return job


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= 100):
        raise InvalidBodyError(("query", "limit"), "Input should be a number from 1 to 100")
    return int(text)

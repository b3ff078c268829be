"""The routes of the control API, through which a test sets how the emulator behaves and reads its log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from noukai_core.emulator import _responses
from noukai_core.emulator._job_store import AlreadyFinishedError
from noukai_core.emulator._jobs import Job
from noukai_core.emulator._request_log import KINDS
from noukai_core.emulator._script import OUTCOMES, checked
from noukai_core.emulator._service import Service
from noukai_core.emulator._validation import is_object, is_seconds, parse_json

CONTROL_PATH = "/_emulator"

_FINISH_WITH = ("result", "result_bytes", "error")


class _ControlError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def control_routes(service: Service) -> list[Route]:
    """Return the routes of the control API."""
    control = _Control(service)
    return [
        _route("/script", control.script, "POST"),
        _route("/jobs", control.jobs),
        _route("/jobs/{job_id}", control.job),
        _route("/jobs/{job_id}/finish", control.finish, "POST"),
        _route("/jobs/{job_id}/progress", control.progress, "POST"),
        _route("/faults", control.fault, "POST"),
        _route("/faults", control.faults),
        _route("/faults", control.clear_faults, "DELETE"),
        _route("/requests", control.requests),
        _route("/counts", control.counts),
        _route("/wait", control.wait),
        _route("/reset", control.reset, "POST"),
    ]


def _route(path: str, handle: Callable[[Request], Awaitable[Any]], method: str = "GET") -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await handle(request))
        except _ControlError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    return Route(CONTROL_PATH + path, endpoint, methods=[method])


class _Control:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def script(self, request: Request) -> Any:
        spec = await _object(request)
        flow = spec.pop("flow", None)
        if not isinstance(flow, str):
            raise ValueError("flow must be a slug, org/project/slug, or * for every flow")
        self._service.script.set(flow, spec)

    async def jobs(self, request: Request) -> Any:
        now = self._service.now()
        return [_responses.entry(job, now) for job in self._service.jobs]

    async def job(self, request: Request) -> Any:
        return self._entry(self._job(request))

    async def finish(self, request: Request) -> Any:
        job, spec = self._job(request), await _object(request)
        outcome = spec.pop("outcome", "completed")
        if outcome not in OUTCOMES or outcome == "never":
            raise ValueError(f"outcome is {outcome!r}, but must be completed, failed or cancelled")
        for name in spec:
            if name not in _FINISH_WITH:
                raise ValueError(f"finish has {name!r}, but may have only outcome, {', '.join(_FINISH_WITH)}")
        try:
            self._service.jobs.finish(job, outcome, checked(spec, "finish"))
        except AlreadyFinishedError as finished:
            raise _ControlError(409, str(finished)) from None
        self._service.changes.notify()
        return self._entry(job)

    async def progress(self, request: Request) -> Any:
        job = self._job(request)
        self._service.jobs.show_progress(job, await _object(request))
        return self._entry(job)

    async def fault(self, request: Request) -> Any:
        return {"id": self._service.faults.add(await _object(request))}

    async def faults(self, request: Request) -> Any:
        return self._service.faults.views()

    async def clear_faults(self, request: Request) -> Any:
        self._service.faults.clear()

    async def requests(self, request: Request) -> Any:
        return self._service.log.entries(_kind(request), request.query_params.get("job_id"))

    async def counts(self, request: Request) -> Any:
        return self._service.log.counts(request.query_params.get("job_id"))

    async def wait(self, request: Request) -> Any:
        kind, job_id = _kind(request), request.query_params.get("job_id")
        if kind is None:
            raise ValueError(f"kind is missing: one of {', '.join(KINDS)}")
        count = int(request.query_params.get("count", "1"))
        seconds = float(request.query_params.get("timeout", "30"))
        if not is_seconds(seconds):
            raise ValueError("timeout must be a number of seconds")
        log = self._service.log
        return await self._service.changes.until(lambda: log.counts(job_id)[kind] >= count, seconds)

    async def reset(self, request: Request) -> Any:
        self._service.reset()

    def _job(self, request: Request) -> Job:
        job = self._service.jobs.find(request.path_params["job_id"])
        if job is None:
            raise _ControlError(404, f"there is no job {request.path_params['job_id']}")
        return job

    def _entry(self, job: Job) -> dict[str, Any]:
        return _responses.entry(job, self._service.now())


def _kind(request: Request) -> str | None:
    kind = request.query_params.get("kind")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
    return kind


async def _object(request: Request) -> dict[str, Any]:
    body = await request.body()
    value: object = parse_json(body) if body else {}
    if not is_object(value):
        raise ValueError("the body must be an object")
    return dict(value)

"""Spans and metrics of OpenTelemetry, and of whatever else wants the same measurements.

Nothing is imported for it. If the process has loaded OpenTelemetry's API, its global providers are used; if
not, nothing is measured. Prompts, outputs and keys are in no span, metric or attribute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from noukai_core.errors import APIError, NoukaiError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

Attributes: TypeAlias = "Mapping[str, str]"
Measure: TypeAlias = Callable[[str, float, Attributes], object]


class Instrument(NamedTuple):
    """What is measured: the kind of the instrument, the unit, and what it says."""

    kind: Literal["counter", "up_down_counter", "histogram"]
    unit: str
    description: str


INSTRUMENTS: dict[str, Instrument] = {
    "noukai.jobs": Instrument("counter", "{job}", "Jobs that were seen to end, by their state."),
    "noukai.jobs.waiting": Instrument("up_down_counter", "{job}", "Jobs that are waited for."),
    "noukai.job.end_lag": Instrument(
        "histogram",
        "s",
        "From the end of a job, by the server's clock, until it was seen.",
    ),
    "noukai.submission.retries": Instrument(
        "counter",
        "{retry}",
        "Submissions that were sent again after a rejection.",
    ),
    "noukai.polls": Instrument("counter", "{poll}", "Polls of single jobs."),
    "noukai.poll.errors": Instrument("counter", "{error}", "Polls that failed, by the type of the error."),
    "noukai.rate_limit.pauses": Instrument(
        "counter",
        "{pause}",
        "Polls of single jobs that were rejected as too many, or found no free connection.",
    ),
}
"""All instruments, by the names of their metrics."""

_ATTRIBUTES = {"state": "noukai.job.state", "error_type": "error.type"}
_LAG_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 300.0)
_SCOPE = "noukai_core"
_receivers: list[Measure] = []


def add_receiver(receiver: Measure) -> None:
    """Pass every measurement to a function as well: its name, its value, and its attributes.

    A counter's value is what is added to it. The function must be quick, and safe in every thread.
    """
    if receiver not in _receivers:
        _receivers.append(receiver)


def measure(name: str, value: float = 1, **attributes: str) -> None:
    """Take a measurement of one of the `INSTRUMENTS`. Nothing that fails here is raised."""
    for receiver in (_to_opentelemetry, *_receivers):
        try:
            receiver(name, value, attributes)
        except Exception:  # noqa: S112 - what is measured is what matters
            continue


def _to_opentelemetry(name: str, value: float, attributes: Attributes) -> None:
    metrics: Any = sys.modules.get("opentelemetry.metrics")
    if metrics is None:
        return
    instrument = _instrument(name)
    named = {_ATTRIBUTES[key]: text for key, text in attributes.items()}
    (instrument.record if INSTRUMENTS[name].kind == "histogram" else instrument.add)(value, named)


@cache
def _instrument(name: str) -> Any:
    kind, unit, description = INSTRUMENTS[name]
    meter = sys.modules["opentelemetry.metrics"].get_meter(_SCOPE)
    advice = {"explicit_bucket_boundaries_advisory": _LAG_BUCKETS} if kind == "histogram" else {}
    return getattr(meter, f"create_{kind}")(name, unit=unit, description=description, **advice)


class JobSpan:
    """The span of one job in this process: from its submission, or the start of a wait, until a wait ends.

    It is a child of the span that is current when it begins, and goes out with each of the job's requests. It
    is not the current one itself: other code may run between the effects. Without a wait, it ends with the
    submission. Without OpenTelemetry, it is nothing.

    Args:
        flow: The job's flow.
        job_id: The job, if there is one already.
    """

    def __init__(self, flow: str, job_id: str | None = None) -> None:
        self._attributes = {"noukai.flow": flow} | ({} if job_id is None else {"noukai.job.id": job_id})
        self._span: Any = None
        self._headers: dict[str, str] = {}
        self._seen = 0

    def submission(self, effects: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run the effects that submit the job. The span ends if they fail, and else waits for a wait."""
        return self._run(effects, "submitted", ends=False)

    def wait(self, effects: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run the effects that wait for the job, and end the span."""
        return self._run(effects, "waited", ends=True)

    def _run(self, effects: Generator[Any, Any, T], event: str, *, ends: bool) -> Generator[Any, Any, T]:
        trace = _tracing()
        return effects if trace is None else self._traced(trace, effects, event, ends=ends)

    def _traced(
        self, trace: Any, effects: Generator[Any, Any, T], event: str, *, ends: bool
    ) -> Generator[Any, Any, T]:
        span = self._begun(trace)
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration as end:
                    value: T = end.value
                    _describe(trace, span, value)
                    span.add_event(event)
                    return value
                call = getattr(effect, "call", None)
                if self._headers and call is not None:
                    effect = replace(effect, call=replace(call, headers={**call.headers, **self._headers}))
                outcome = yield effect
        except NoukaiError as error:
            ends = True
            span.set_attribute("error.type", type(error).__name__)
            if isinstance(error, APIError) and error.status_code is not None:
                span.set_attribute("http.response.status_code", error.status_code)
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            effects.close()
            self._seen = time.time_ns()
            if ends:
                self._end()

    def _begun(self, trace: Any) -> Any:
        if self._span is None:
            self._span = trace.get_tracer(_SCOPE).start_span(
                "noukai.job", kind=trace.SpanKind.CLIENT, attributes=self._attributes
            )
            self._headers = _context_headers(trace, self._span)
        return self._span

    def _end(self) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(self._seen)

    def __del__(self) -> None:
        """End the span of a job that nobody has waited for, at the time of its submission."""
        with suppress(Exception):  # the process may be ending
            self._end()


def _tracing() -> Any:
    """Return OpenTelemetry's module, unless nobody would see a span, which takes a kilobyte for each wait."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    idle = isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
    return None if idle and not trace.get_current_span().get_span_context().is_valid else trace


def _context_headers(trace: Any, span: Any) -> dict[str, str]:
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    headers: dict[str, str] = {}
    if propagate is not None and span.get_span_context().is_valid:
        propagate.inject(headers, context=trace.set_span_in_context(span))
    return headers


def _describe(trace: Any, span: Any, value: Any) -> None:
    """Say in a span which job was submitted, or how one ended."""
    job = getattr(value, "job", value)
    if isinstance(job_id := getattr(job, "id", None), str):
        span.set_attribute("noukai.job.id", job_id)
    state = getattr(value, "state", None)
    if state is not None:
        span.set_attribute("noukai.job.state", str(state))
        if str(state) in ("failed", "cancelled"):
            span.set_status(trace.StatusCode.ERROR, str(state))

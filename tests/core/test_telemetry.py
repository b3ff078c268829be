"""Spans and metrics: what a job leaves in OpenTelemetry, and that nothing is needed for it."""

from __future__ import annotations

import gc
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from noukai_core import AsyncNoukai, JobTimeoutError, Noukai, telemetry
from tests.core.scripted_server import FLOW, ScriptedServer, accepted, rejection, state

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

assert propagate  # what a process has loaded that exports anything

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from noukai_core import Noukai
from noukai_core.emulator import Emulator
with Emulator() as emulator, Noukai("nk_test_key", base_url=emulator.base_url) as client:
    assert client.flow("acme/a1/b1").job(message="x").wait(timeout_ms=60_000).output
print("opentelemetry.trace" in sys.modules)
"""


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """What a span says."""
    return dict(span.attributes or {})


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the process's tracer exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The sums and counts of the process's metrics, by name and attributes."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    telemetry._instrument.cache_clear()

    def values() -> dict[Any, float]:
        data: Any = reader.get_metrics_data()
        return {
            (metric.name, *point.attributes.values()): getattr(point, "value", None)
            or getattr(point, "count", 0)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    yield values
    telemetry._instrument.cache_clear()
    provider.shutdown()


@pytest.mark.parametrize("client_type", [Noukai, AsyncNoukai])
async def test_a_job_has_one_span(
    client_type: type[Any], server: ScriptedServer, spans: InMemorySpanExporter, key: str
) -> None:
    """The submission and the wait are in one span under the caller's, which goes out with each request."""
    server.on("poll", state("completed", result="secret output"))
    client = client_type(key, base_url="https://noukai.test/api/v1", transport=server.transport)
    with trace.get_tracer("test").start_as_current_span("task") as task:
        job = client.flow(FLOW).job("secret prompt")
        job = await job if inspect.isawaitable(job) else job
        result = job.wait(timeout_ms=60_000)
        _ = await result if inspect.isawaitable(result) else result
    span, _ = spans.get_finished_spans()
    assert (span.name, span.parent) == ("noukai.job", task.get_span_context())
    assert attributes_of(span) == {
        "noukai.flow": FLOW,
        "noukai.job.id": "job-1",
        "noukai.job.state": "completed",
    }
    assert [event.name for event in span.events] == ["submitted", "waited"]
    assert "secret" not in span.to_json()
    for kind in ("submit", "poll"):
        (request,) = server.made(kind)
        _, trace_id, span_id, _ = request.headers["traceparent"].split("-")
        assert (int(trace_id, 16), int(span_id, 16)) == (span.context.trace_id, span.context.span_id)


def test_a_job_that_nobody_waits_for(
    scripted: MakeClient, server: ScriptedServer, spans: InMemorySpanExporter
) -> None:
    """The span of a job without a wait ends with the submission, once its handle is gone."""
    job = scripted().flow(FLOW).job("x")
    submitted_by = time.time_ns()
    assert not spans.get_finished_spans()
    del job
    gc.collect()
    (span,) = spans.get_finished_spans()
    assert span.end_time <= submitted_by
    assert span.status.status_code is trace.StatusCode.UNSET


def test_a_second_wait(scripted: MakeClient, server: ScriptedServer, spans: InMemorySpanExporter) -> None:
    """A wait after the first one, and one for an attached job, is a span for itself."""
    server.on("poll", state("completed"))
    job = scripted().flow(FLOW).job("x")
    for each in (job, job, scripted().flow(FLOW).attach("job-1")):
        each.wait(timeout_ms=60_000)
    found = spans.get_finished_spans()
    assert [span.name for span in found] == ["noukai.job"] * 3
    assert [len(span.events) for span in found] == [2, 1, 1]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_bad_end_is_an_error(
    scripted: MakeClient, server: ScriptedServer, spans: InMemorySpanExporter, end: str
) -> None:
    """The span of a wait for a job that did not complete has the status of an error, without the reason."""
    server.on("poll", state(end, error="secret reason"))
    *_, last = scripted().flow(FLOW).attach("job-1").watch()
    assert last.state == end
    (wait,) = spans.get_finished_spans()
    assert (wait.status.status_code, wait.status.description) == (trace.StatusCode.ERROR, end)
    assert "secret" not in wait.to_json()


def test_an_error_is_named(scripted: MakeClient, server: ScriptedServer, spans: InMemorySpanExporter) -> None:
    """A submission that is rejected, and a wait that times out, name their error by its type."""
    server.on("submit", rejection(403))
    with pytest.raises(Exception, match="403"):
        scripted().flow(FLOW).job("x")
    server.on("poll", state("running"))
    with pytest.raises(JobTimeoutError):
        scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20)
    submit, wait = spans.get_finished_spans()
    assert attributes_of(submit)["error.type"] == "PermissionDeniedError"
    assert attributes_of(submit)["http.response.status_code"] == 403
    assert attributes_of(wait)["error.type"] == "JobTimeoutError"


def test_a_wait_that_is_left_ends_its_span(
    scripted: MakeClient, server: ScriptedServer, spans: InMemorySpanExporter, measured: Any
) -> None:
    """A watch that is left, as by a deferral, ends its span, and its job no longer counts as waiting."""
    server.on("poll", state("running"))
    watch = scripted().flow(FLOW).attach("job-1").watch()
    next(watch)
    assert measured()["noukai.jobs.waiting",] == 1
    watch.close()
    assert measured()["noukai.jobs.waiting",] == 0
    assert [span.name for span in spans.get_finished_spans()] == ["noukai.job"]


def test_metrics(patient: MakeClient, server: ScriptedServer, measured: Any) -> None:
    """Polls, their errors, pauses, retries of submissions, and the ends of jobs are counted."""
    server.on("submit", rejection(429, Retry_After="0"), accepted())
    server.on(
        "poll",
        state("running"),
        rejection(503),
        rejection(429, Retry_After="0"),
        state("completed", completedAt="2026-01-01T00:00:00Z"),
        state("completed"),
    )
    job = patient().flow(FLOW).job("x")
    job.wait(timeout_ms=60_000)
    job.wait(timeout_ms=60_000)
    assert measured() == {
        ("noukai.submission.retries",): 1,
        ("noukai.polls",): 5,
        ("noukai.poll.errors", "TransientError"): 1,
        ("noukai.poll.errors", "RateLimitError"): 1,
        ("noukai.rate_limit.pauses",): 1,
        ("noukai.jobs", "completed"): 1,
        ("noukai.job.end_lag",): 1,
        ("noukai.jobs.waiting",): 0,
    }


def test_a_receiver_that_fails(
    scripted: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver of measurements that raises changes nothing about a job."""
    seen: list[str] = []

    def broken(name: str, *_: object) -> None:
        seen.append(name)
        raise ValueError(name)

    monkeypatch.setattr(telemetry, "_receivers", [broken])
    server.on("poll", state("completed", result=7))
    assert scripted().flow(FLOW).attach("job-1").wait().output == 7
    assert seen == ["noukai.jobs.waiting", "noukai.polls", "noukai.jobs", "noukai.jobs.waiting"]


def test_the_files_for_operators_name_these_metrics() -> None:
    """The documents, the dashboard and the alerts have the names that Prometheus gets for the metrics."""
    folder = Path(__file__).parents[2] / "docs" / "operations"
    suffix = {"counter": "_total", "histogram": "_seconds", "up_down_counter": ""}
    names = {
        name.replace(".", "_") + suffix[instrument.kind]: name
        for name, instrument in telemetry.INSTRUMENTS.items()
    }
    page = (folder / "observability.md").read_text(encoding="utf-8")
    assert [name for name, given in names.items() if f"| `{given}` | `{name}` |" not in page] == []
    used: set[str] = set()
    for file in ("dashboard.json", "alerts.yml"):
        text = (folder / file).read_text(encoding="utf-8")
        used |= set(re.findall(r"\bnoukai_\w+(?=\[|\{|\))", text))
    assert {name.removesuffix("_bucket") for name in used} - {"noukai_job_state"} == set(names)


def test_without_opentelemetry() -> None:
    """OpenTelemetry is neither needed nor loaded."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_no_span_is_made_for_nobody() -> None:
    """Without a tracer provider, a wait takes nothing for a span, though OpenTelemetry is imported."""
    assert telemetry._tracing() is None
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))):
        assert telemetry._tracing() is trace  # a trace that others record goes on

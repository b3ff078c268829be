"""What the server says about jobs, as frozen models."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from noukai_core._amounts import count_or_none, dollars_or_none
from noukai_core._progress import progress_text
from noukai_core._text import one_line
from noukai_core.errors import InvalidInputError, JobCancelledError, JobFailedError


class JobState(StrEnum):
    """The five states of a job."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the job will never leave this state."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


_SHOWN_REASON = 2000

FAILED_STEP = ("failed", "error")
"""The states of a step that failed."""

_STATES = {state.value: state for state in JobState}


def _known_state(state: str) -> str:
    return _STATES.get(state, state)


class _Model(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid")


class JobAccepted(_Model, frozen=True):
    """The response to a submission.

    Attributes:
        id: The job.
        state: A `JobState`, or the server's own word.
        flow_id: The id that the server gave the flow, by which its runs are listed.
    """

    id: str
    state: Annotated[str, AfterValidator(_known_state)] = JobState.PENDING
    flow_id: str | None = None


class ExecuteResult(_Model, frozen=True):
    """The result of a completed job; `output` is what the flow returned."""

    output: Any = None


class JobStatus(_Model, frozen=True):
    """What one poll of a job showed.

    Attributes:
        id: The job.
        state: A `JobState`, or the server's own word in lower case when it is none of the five.
        result: The result of a completed job.
        error: Why a failed job failed, in the server's words, up to 64 kB. Clean it with `one_line` before
            people or terminals see it.
        created_at: ISO 8601, like the two that follow; each only when the server tells.
        started_at: When a worker took the job.
        completed_at: When the job ended.
        progress: What the flow reports of its progress, up to 64 kB; its form is the flow's own.
        state_only: Whether the status was read without the result, as by a trigger.
    """

    id: str
    state: Annotated[str, AfterValidator(_known_state)]
    result: ExecuteResult | None = None
    error: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    progress: dict[str, Any] | None = None
    state_only: bool = False

    @property
    def finished(self) -> bool:
        """Whether the job has ended. A state that is not one of the five counts as not ended."""
        return isinstance(self.state, JobState) and self.state.finished

    @property
    def progress_text(self) -> str | None:
        """The progress in words, such as `40 % (4 of 10)`; JSON if it has another form."""
        return None if self.progress is None else progress_text(self.progress)

    def result_or_raise(self, *, step: TraceStep | None = None) -> ExecuteResult:
        """Return the result of a completed job.

        Args:
            step: The step that failed, for the error; `RunTrace.failed_step` has it.

        Raises:
            JobFailedError: It failed.
            JobCancelledError: It was cancelled.
            InvalidInputError: It has not ended yet, or was read without its result.
        """
        if self.state_only and self.state == JobState.COMPLETED:
            raise InvalidInputError(f"Noukai job {self.id} was polled for its state only: poll it again")
        if self.state == JobState.COMPLETED:
            return self.result or ExecuteResult()
        if self.state == JobState.FAILED:
            reason = one_line(self.error or "the server gave no reason", _SHOWN_REASON)
            where = "" if step is None else f" in step {step.label}"
            raise JobFailedError(
                f"Noukai job {self.id} failed{where}: {reason}", job_id=self.id, status=self, step=step
            )
        if self.state == JobState.CANCELLED:
            raise JobCancelledError(
                f"Noukai job {self.id} was cancelled on the Noukai side", job_id=self.id, status=self
            )
        raise InvalidInputError(f"Noukai job {self.id} has no outcome yet: it is {self.state}")


class KeyInfo(_Model, frozen=True):
    """What a key gives access to, as far as the server tells."""

    org: str | None = None
    project: str | None = None
    environment: str | None = None


class TraceStep(_Model, frozen=True):
    """One step of a run.

    Attributes:
        id: The step, as the flow names it.
        status: Its state, in lower case.
        error: Why it failed.
        attempt: Which attempt at the step it was, from 1.
        duration_ms: How long it took, in milliseconds.
        model: The model that it used.
        tokens: The tokens that it used.
        cost_usd: What it cost in US dollars, if the server tells.
        cost_unknown: Whether it may have cost something that the server does not tell in a form that can be
            read: it has a model or tokens, but no cost. A step that failed without tokens cost nothing.
    """

    id: str | None = None
    status: str | None = None
    error: str | None = None
    attempt: int | None = None
    duration_ms: float | None = None
    model: str | None = None
    tokens: int | None = None
    cost_usd: Decimal | None = None
    cost_unknown: bool = False

    @property
    def label(self) -> str:
        """What names the step, such as `draft (gpt-5, attempt 2)`."""
        details = [self.model, None if self.attempt is None else f"attempt {self.attempt}"]
        known = ", ".join(detail for detail in details if detail)
        return one_line((self.id or "without an id") + (f" ({known})" if known else ""))

    @property
    def text(self) -> str:
        """The step in words, such as `draft completed after 1.2 s (model gpt-5, 12 tokens, $0.0001)`."""
        known = [
            f"attempt {self.attempt}" if self.attempt is not None and self.attempt > 1 else None,
            f"model {self.model}" if self.model else None,
            f"{self.tokens} tokens" if self.tokens is not None else None,
            f"${self.cost_usd}" if self.cost_usd is not None else None,
        ]
        state = "started" if self.status == "running" else self.status or "of unknown state"
        after = "" if self.duration_ms is None else f" after {self.duration_ms / 1000:.1f} s"
        details = ", ".join(part for part in known if part)
        reason = f": {one_line(self.error)}" if self.error else ""
        return f"{self.id or 'without an id'} {state}{after}{f' ({details})' if details else ''}{reason}"


class RunTrace(_Model, frozen=True):
    """How a run went, step by step."""

    status: str | None = None
    duration_ms: float | None = None
    steps: tuple[TraceStep, ...] = ()

    @property
    def failed_step(self) -> TraceStep | None:
        """The step that failed last, or `None` if no step has failed."""
        return next((step for step in reversed(self.steps) if step.status in FAILED_STEP), None)

    @property
    def total_tokens(self) -> int | None:
        """The tokens of all steps that report them; `None` when none does."""
        counts = [step.tokens for step in self.steps if step.tokens is not None]
        return count_or_none(sum(counts)) if counts else None

    @property
    def cost_usd(self) -> Decimal | None:
        """What all steps cost, in US dollars; `None` if that of one is unknown, or if none tells."""
        if any(step.cost_unknown for step in self.steps):
            return None
        known = [step for step in self.steps if step.cost_usd is not None or step.status in FAILED_STEP]
        total = sum((step.cost_usd or Decimal(0) for step in known), Decimal(0))
        return dollars_or_none(str(total)) if known else None

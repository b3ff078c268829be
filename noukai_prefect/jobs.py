"""The job block, `NoukaiJob`, and the run that it triggers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from noukai_core import JobRequest, JobStatus
from noukai_core.checks import check_job_id
from noukai_core.following import Follow
from noukai_prefect import _cancellation
from noukai_prefect._block_fields import VersionText, refuse_unknown_fields
from noukai_prefect._run import OnCancelled, WaitOptions, submit, wait
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import (
    DOCUMENTATION_URL,
    NoukaiCredentials,
    OptionalNumber,
    OptionalObject,
    OptionalText,
    check_credentials,
)

if TYPE_CHECKING:
    _JobBlock = JobBlock[Any]
else:
    # Pydantic turns `JobBlock[Any]` into a class, which Prefect would list as another block type.
    _JobBlock = JobBlock


class NoukaiJobRun(JobRun[Any]):
    """One job. Every method has a twin for async code, prefixed with `a`.

    It holds no connection. `from_id` creates the run of an existing job.
    """

    def __init__(
        self,
        credentials: NoukaiCredentials,
        flow: str,
        job_id: str,
        *,
        wait_options: WaitOptions | None = None,
        submitted_at: datetime | None = None,
        request: JobRequest | None = None,
    ) -> None:
        self.flow = flow
        self.job_id = job_id
        self._credentials = check_credentials(credentials)
        self._wait_options = wait_options or WaitOptions()
        self._submitted_at = submitted_at
        self._output: tuple[Any] | None = None
        self._request = request

    @classmethod
    def from_id(
        cls,
        credentials: NoukaiCredentials,
        flow: str,
        job_id: str,
        *,
        submitted_at: datetime | None = None,
        timeout: float | None = None,
        poll_interval: float | None = None,
        on_cancelled: OnCancelled = "fail",
        cancel_on_timeout: bool = True,
        follow: Follow = "state",
    ) -> NoukaiJobRun:
        """Return the run of an existing job. No request is made.

        Args:
            credentials: The project's credentials.
            flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
            job_id: The job.
            submitted_at: When it was submitted, with a time zone. Just after a submission Noukai may not know
                the job yet; with this time given, that is waited out.
            timeout: The longest wait in seconds; no limit by default.
            poll_interval: Seconds between two polls. By default the pause grows with the age of the job.
            on_cancelled: If the job is cancelled on the Noukai side: `"fail"` raises an error, `"cancel"`
                returns a `Cancelled` state.
            cancel_on_timeout: Whether the job is cancelled when the wait, the task or the flow times out.
            follow: What of the job is logged while it runs: its `"state"`, its `"steps"` as well, or, with
                `None`, nothing.

        Raises:
            InvalidInputError: The credentials are no block, `job_id` is no id of a job, or an argument about
                the wait is wrong.
        """
        wait_options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout, follow)
        return cls(
            credentials, flow, check_job_id(job_id), wait_options=wait_options, submitted_at=submitted_at
        )

    def __repr__(self) -> str:
        return f"NoukaiJobRun({self.job_id!r}, flow={self.flow!r})"

    async def await_for_completion(self) -> None:
        """Wait until the job ends; see `wait_for_completion`."""
        if self._output is None:
            async with self._credentials.get_client("async") as client:
                job = client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at)
                self._output = (
                    await wait(
                        self._credentials, job, self._wait_options, RunContext.current(), self._request
                    ),
                )

    def wait_for_completion(self) -> None:  # type: ignore[override]  # pyright: ignore
        """Wait until the job ends.

        Raises:
            JobFailedError: The job failed.
            JobCancelledError: The job was cancelled on the Noukai side.
            JobTimeoutError: The block's `timeout` expired. The job was cancelled, unless the block has
                `cancel_on_timeout` off.
            CancelledRun: The flow run was stopped, and this code runs in a thread.
        """
        run_blocking(self.await_for_completion(), "await_for_completion")

    async def afetch_result(self) -> Any:
        """Return the job's output; see `fetch_result`."""
        await self.await_for_completion()
        return self._output[0] if self._output else None

    def fetch_result(self) -> Any:
        """Return the job's output, and wait for it if the job has not ended yet."""
        return run_blocking(self.afetch_result(), "afetch_result")

    async def astatus(self) -> JobStatus:
        """Poll the job once; see `status`."""
        async with self._credentials.get_client("async") as client:
            return await client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at).status()

    def status(self) -> JobStatus:
        """Poll the job once, and return its status."""
        return run_blocking(self.astatus(), "astatus")

    async def acancel(self) -> bool:
        """Cancel the job; see `cancel`."""
        async with self._credentials.get_client("async") as client:
            job = client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at)
            return await _cancellation.cancel(job, RunContext.current(), "requested")

    def cancel(self) -> bool:
        """Cancel the job, and return whether it was cancelled. If not, a line in the log says why."""
        return run_blocking(self.acancel(), "acancel")


class NoukaiJob(_JobBlock):
    """A Noukai flow with its inputs, ready to run as a job.

    Example:
        Load a stored job, run it, and get its output:
        ```python
        from noukai_prefect import NoukaiJob

        job = NoukaiJob.load("BLOCK_NAME")
        run = job.trigger()
        run.wait_for_completion()
        print(run.fetch_result())
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "Noukai Job"
    _block_type_slug = "noukai-job"
    _documentation_url = DOCUMENTATION_URL

    credentials: NoukaiCredentials
    flow: str = Field(
        description="The Noukai flow, as org/project/slug. A slug is enough if the credentials have the rest."
    )
    message: OptionalText = Field(
        default=None, description="The flow's input. Either it or Parameters is required."
    )
    parameters: OptionalObject = Field(default=None, description="Named inputs of the flow.")
    block_overrides: dict[str, dict[str, Any]] | SkipJsonSchema[None] = Field(
        default=None, title="Block Overrides", description="Settings of single steps, by step id."
    )
    version: VersionText = Field(
        default="production", description="production, draft or the number of a published version."
    )
    trace: bool = Field(default=False, description="Whether the run is traced.")
    callback_url: OptionalText = Field(
        default=None,
        title="Callback URL",
        description="A public https address that Noukai calls when the job has ended.",
    )
    callback_events: list[str] | SkipJsonSchema[None] = Field(
        default=None,
        title="Callback Events",
        description="The events to call it for: flow.completed, flow.failed or both.",
    )
    timeout: OptionalNumber = Field(
        default=None, description="The longest wait in seconds; no limit by default."
    )
    poll_interval: OptionalNumber = Field(
        default=None,
        title="Poll Interval",
        description="Seconds between two polls. By default the pause grows with the age of the job.",
    )
    on_cancelled: Literal["fail", "cancel"] = Field(
        default="fail",
        title="On Cancelled",
        description="If the job is cancelled on the Noukai side: fail raises an error, cancel returns a "
        "Cancelled state.",
    )
    cancel_on_timeout: bool = Field(
        default=True,
        title="Cancel on Timeout",
        description="Whether the job is cancelled when the wait, the task or the flow times out.",
    )
    follow: Literal["state", "steps"] | SkipJsonSchema[None] = Field(
        default="state",
        description="What of the job is logged while it runs: its state, or its steps as well, live.",
    )

    _refuse_unknown_fields = model_validator(mode="after")(refuse_unknown_fields)

    async def atrigger(self) -> NoukaiJobRun:
        """Submit the job; see `trigger`."""
        request = JobRequest(
            self.flow,
            self.message,
            self.parameters,
            self.block_overrides,
            self.version,
            self.trace,
            callback_url=self.callback_url or None,
            callback_events=self.callback_events or None,
        )
        wait_options = WaitOptions(
            self.timeout, self.poll_interval, self.on_cancelled, self.cancel_on_timeout, self.follow
        )
        async with self.credentials.get_client("async") as client:
            job = await submit(self.credentials, client, request, RunContext.current())
        return NoukaiJobRun(
            self.credentials,
            job.flow,
            job.id,
            wait_options=wait_options,
            submitted_at=job.submitted_at or datetime.now(UTC),
            request=request,
        )

    def trigger(self) -> NoukaiJobRun:  # type: ignore[override]  # pyright: ignore
        """Submit the job once. A rerun of the flow run finds it again.

        Returns:
            The run, which waits for the job and fetches its output.

        Raises:
            InvalidInputError: A field of the block is invalid; nothing was sent.
            PermanentError: Noukai rejected the job.
            SubmissionUnknownError: It is unknown whether a job exists.
        """
        return run_blocking(self.atrigger(), "atrigger")

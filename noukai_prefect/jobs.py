"""The blocks' way to run a job: `NoukaiJob`, which is saved once, and the run that it triggers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field

from noukai_core import JobStatus
from noukai_prefect import _cancellation
from noukai_prefect._run import JobRequest, WaitOptions, submit, wait
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import DOCUMENTATION_URL, NoukaiCredentials

if TYPE_CHECKING:
    _JobBlock = JobBlock[Any]
else:
    # Pydantic makes a class of `JobBlock[Any]`, which Prefect would list as one more type of block.
    _JobBlock = JobBlock


class NoukaiJobRun(JobRun[Any]):
    """One job. Every method has a twin for async code, whose name begins with `a`.

    It holds no connection, and can be made anew from the id of a job by `from_id`.
    """

    def __init__(
        self,
        credentials: NoukaiCredentials,
        flow: str,
        job_id: str,
        *,
        options: WaitOptions | None = None,
        submitted_at: datetime | None = None,
    ) -> None:
        self.flow = flow
        self.job_id = job_id
        self._credentials = credentials
        self._waiting = options or WaitOptions()
        self._submitted_at = submitted_at
        self._outcome: tuple[Any] | None = None

    @classmethod
    def from_id(cls, credentials: NoukaiCredentials, flow: str, job_id: str, **options: Any) -> NoukaiJobRun:
        """Return the run of a job that exists. No request is made.

        Args:
            credentials: The project's credentials.
            flow: The Noukai flow, as `org/project/slug`, or a slug alone when the credentials have both.
            job_id: The job.
            **options: `submitted_at` and `waiting`.
        """
        return cls(credentials, flow, job_id, **options)

    def __repr__(self) -> str:
        return f"NoukaiJobRun({self.job_id!r}, flow={self.flow!r})"

    async def await_for_completion(self) -> None:
        """Wait for the end of the job; see `wait_for_completion`."""
        if self._outcome is None:
            async with self._credentials.get_client("async") as client:
                job = client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at)
                self._outcome = (await wait(job, self._waiting, RunContext.current()),)

    def wait_for_completion(self) -> None:  # type: ignore[override]  # pyright: ignore
        """Wait for the end of the job.

        Raises:
            JobFailedError: The job failed.
            JobCancelledError: The job was cancelled on the Noukai side.
            JobTimeoutError: The block's `timeout` passed; the job was cancelled.
            CancelledRun: The flow run is being stopped, and this is a task in a thread.
        """
        run_blocking(self.await_for_completion())

    async def afetch_result(self) -> Any:
        """Return the job's output; see `fetch_result`."""
        await self.await_for_completion()
        return self._outcome[0] if self._outcome else None

    def fetch_result(self) -> Any:
        """Return the job's output; waits for it when it has not ended yet."""
        return run_blocking(self.afetch_result())

    async def astatus(self) -> JobStatus:
        """Look at the job once; see `status`."""
        async with self._credentials.get_client("async") as client:
            return await client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at).status()

    def status(self) -> JobStatus:
        """Look at the job once."""
        return run_blocking(self.astatus())

    async def acancel(self) -> bool:
        """Cancel the job; see `cancel`."""
        async with self._credentials.get_client("async") as client:
            job = client.flow(self.flow).attach(self.job_id, submitted_at=self._submitted_at)
            return await _cancellation.cancel(job, RunContext.current())

    def cancel(self) -> bool:
        """Cancel the job, and tell whether it was; a warning in the log says why not."""
        return run_blocking(self.acancel())


class NoukaiJob(_JobBlock):
    """A Noukai flow with its inputs, ready to be run as a job.

    Example:
        Load a stored job, run it and get its output:
        ```python
        from noukai_prefect import NoukaiJob

        job = NoukaiJob.load("BLOCK_NAME")
        run = job.trigger()
        run.wait_for_completion()
        print(run.fetch_result())
        ```
    """

    _block_type_name = "Noukai Job"
    _block_type_slug = "noukai-job"
    _documentation_url = DOCUMENTATION_URL

    credentials: NoukaiCredentials
    flow: str = Field(
        description="The Noukai flow, as org/project/slug; or a slug alone when the credentials have both."
    )
    message: str | None = Field(default=None, description="The flow's input. It or Parameters is needed.")
    parameters: dict[str, Any] | None = Field(default=None, description="Named inputs of the flow.")
    block_overrides: dict[str, dict[str, Any]] | None = Field(
        default=None, title="Block Overrides", description="Settings of single steps, by step id."
    )
    version: str = Field(
        default="production", description="production, draft, or the number of a published version."
    )
    trace: bool = Field(default=False, description="Whether the run is traced.")
    timeout: float | None = Field(
        default=None, description="Seconds that the job may take before it is cancelled; no limit by default."
    )
    poll_interval: float | None = Field(
        default=None,
        title="Poll Interval",
        description="Seconds between two looks; by default the pause grows with the age of the job.",
    )
    on_cancelled: Literal["fail", "cancel"] = Field(
        default="fail",
        title="On Cancelled",
        description="When somebody cancels the job on the Noukai side: fail raises an error, cancel gives a "
        "Cancelled state.",
    )

    async def atrigger(self) -> NoukaiJobRun:
        """Submit the job; see `trigger`."""
        inputs = JobRequest(
            self.flow, self.message, self.parameters, self.block_overrides, self.version, self.trace
        )
        options = WaitOptions(self.timeout, self.poll_interval, self.on_cancelled)
        async with self.credentials.get_client("async") as client:
            job = await submit(self.credentials, client, inputs, RunContext.current())
        return NoukaiJobRun(
            self.credentials,
            job.flow,
            job.id,
            options=options,
            submitted_at=job.submitted_at or datetime.now(UTC),
        )

    def trigger(self) -> NoukaiJobRun:  # type: ignore[override]  # pyright: ignore
        """Submit the job, once; a rerun of the flow run finds it again.

        Returns:
            The run, to wait for and to fetch the output from.

        Raises:
            InvalidInputError: A field of the block is wrong; nothing was sent.
            Refused: Noukai refused the job for good.
            SubmissionUnknownError: It could not be settled whether there is a job.
        """
        return run_blocking(self.atrigger())

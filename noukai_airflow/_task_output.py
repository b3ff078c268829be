"""What a task returns of the output of its job: the output, checked if a type is given, or where it is."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noukai_airflow._storage import accessing, check_writable, storage_path, write_text
from noukai_airflow._xcom_values import REPLACED, UnreturnableError, as_xcom, check_keys
from noukai_airflow.exceptions import NoukaiException, NoukaiPermanentException
from noukai_core import JobOutputInvalidError, JobState
from noukai_core.batch_files import json_text
from noukai_core.output_types import check_output_type, json_output, typed_output

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pydantic import BaseModel

    from noukai_core import Job, JobStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskOutput:
    """How a task delivers an output. For the attributes see `NoukaiRunJobOperator`."""

    output_type: type[BaseModel] | None = None
    output_path: str | ObjectStoragePath | None = None
    storage_conn_id: str | None = None
    multiple_outputs: bool = False

    def check(self) -> None:
        """Check that the output can be validated and written, before it is paid for.

        Raises:
            InvalidInputError: The model cannot be built.
            NoukaiPermanentException: The output cannot be written.
        """
        check_output_type(self.output_type)
        if self.output_path is None:
            return
        path = storage_path(self.output_path, self.storage_conn_id, "output_path")
        if not path.name or path.is_dir():
            raise NoukaiPermanentException(
                f"output_path is {self.output_path!r:.200}, a folder: name a file in it"
            )
        check_writable(path.parent, path.name)

    def accepts(self, job: Job, status: JobStatus) -> bool:
        """Return whether the task can deliver the output of a job, if it has one already."""
        if status.state != JobState.COMPLETED:
            return True
        try:
            self._checked(job, _output_of(status))
        except JobOutputInvalidError:
            return False
        return True

    def deliver(self, job: Job, status: JobStatus) -> Any:
        """Return what the task returns.

        Raises:
            JobOutputInvalidError: The output is not of the type.
            NoukaiException: It can be neither written nor returned.
        """
        output = self._checked(job, _output_of(status))
        if self.output_path is None:
            return returned(job, output, multiple_outputs=self.multiple_outputs)
        path = storage_path(self.output_path, self.storage_conn_id, "output_path")
        as_text = isinstance(output, str) and path.suffix != ".json"
        with accessing(path, "written"):
            size = write_text(path, output if as_text else json_text(output))
        return {"uri": str(self.output_path), "bytes": size, "job_id": job.id}

    def _checked(self, job: Job, output: Any) -> Any:
        if self.output_type is None:
            return output
        model = typed_output(output, self.output_type, job_id=job.id, flow=job.flow)
        return json_output(model, job_id=job.id)


def returned(job: Job, output: Any, *, multiple_outputs: bool) -> Any:
    """Return what a task returns of the output of a job, as an XCom.

    Args:
        job: The job.
        output: Its output.
        multiple_outputs: Whether Airflow makes an XCom of each key as well.

    Raises:
        NoukaiException: No XCom can hold it. Retries apply: with `output_path` they need no new job.
    """
    try:
        returned, changed = as_xcom(output)
        if multiple_outputs:
            check_keys(returned)
    except UnreturnableError as error:
        raise NoukaiException(f"{error} (Noukai job {job.id} of {job.flow})") from None
    if changed:
        log.warning("Noukai job %s of %s: output changed (%s)", job.id, job.flow, REPLACED)
    return returned


def _output_of(status: JobStatus) -> Any:
    return None if status.result is None else status.result.output

"""The header of a batch's log: which batch it is, and which try of its task runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noukai_airflow._kill_policy import ANOTHER_TRY
from noukai_airflow.exceptions import NoukaiException

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._batch_log import BatchLog


class BatchHeader:
    """Reads and writes the header for one try of a task.

    A try that was suspended may run beside a later one. In the state store, its id leads to no header; in a
    folder, it finds the header of the later try.

    Args:
        log: The log.
        task_instance: The running try.
        task: The task, as headers name it.
        in_folder: Whether the log is in the output folder.
    """

    def __init__(
        self, log: BatchLog, task_instance: RuntimeTaskInstanceProtocol, task: str, *, in_folder: bool
    ) -> None:
        self._log = log
        self._number = task_instance.try_number
        self._id = str(task_instance.id)
        self._task = task
        self._in_folder = in_folder
        self._kept: dict[str, Any] | None = None

    def read(self) -> dict[str, Any] | None:
        """Return the header, or `None` if there is none or it is malformed."""
        return self._log.header()

    def write(self, header: dict[str, Any]) -> dict[str, Any]:
        """Write the header for this try, and return it."""
        own = {**header, "task": self._task, "try_number": self._number, "try_id": self._id}
        self.keep(own)
        self._log.write_header(own)
        return own

    def keep(self, header: dict[str, Any]) -> None:
        """Take note of the header of this try, to write it again if an earlier one has replaced it."""
        self._kept = header

    def is_own(self) -> bool:
        """Return whether this try still runs the batch, unless the log says that another one does.

        It is read twice, for the reason that `JobStore.is_replaced` gives.
        """
        try:
            return any(self._belongs(self.read()) for _ in range(2))
        except Exception:
            return True

    def check_own(self) -> None:
        """Raise if another try runs the batch."""
        if not self.is_own():
            raise NoukaiException(ANOTHER_TRY)

    def is_later(self, header: dict[str, Any]) -> bool:
        """Return whether a header is that of a later try.

        The number alone may be that of a run that was deleted, and the ids are in the order of time only as
        far as the clocks of Airflow's machines agree.
        """
        number, try_id = self._try_of(header)
        return number > self._number and try_id > self._id

    def _belongs(self, header: dict[str, Any] | None) -> bool:
        if header is None:
            return self._in_folder
        if header.get("task") != self._task or self.is_later(header):
            return False
        number, try_id = self._try_of(header)
        if self._kept is not None and number < self._number and try_id < self._id:
            # A suspended try has written its own over it, or an object storage still shows an earlier one.
            self._log.write_header(self._kept)
        return True

    def _try_of(self, header: dict[str, Any]) -> tuple[int, str]:
        number = header.get("try_number")
        return number if isinstance(number, int) else self._number, str(header.get("try_id"))

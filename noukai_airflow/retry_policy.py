"""A retry policy that takes Noukai's errors into account. For Airflow 3.3 and later."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError as error:
    raise ImportError(
        f"NoukaiRetryPolicy needs Airflow 3.3 or later, and this is {version('apache-airflow-core')}"
    ) from error

from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiPermanentException,
    NoukaiRateLimitException,
    translate,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core.checks import Duration


class NoukaiRetryPolicy(RetryPolicy):
    """Waits as long as the server asks, and does not retry what cannot succeed.

    It suits the operator as well as tasks of your own that use the hook. The latter raise the job client's
    errors, which Airflow alone would retry even after a permanent error.

    Args:
        longest_delay: The upper limit for the wait that the server may ask for, in seconds or as a timedelta.
        reschedule_timeout: How long rate limits cost no retry, in seconds or as a timedelta. Since Airflow
            3.4, the task is rescheduled in the meantime; before that, each wait is a retry.

    Raises:
        ValueError: An argument is no duration.
    """

    def __init__(
        self,
        longest_delay: Duration = timedelta(hours=1),
        reschedule_timeout: Duration = timedelta(hours=24),
    ) -> None:
        from noukai_core.checks import check_duration

        self.longest_delay = timedelta(seconds=check_duration(longest_delay, "longest_delay", zero=True))
        self.reschedule_timeout = timedelta(seconds=check_duration(reschedule_timeout, "reschedule_timeout"))

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide whether and when to retry after an error."""
        error = _as_airflow_exception(exception)
        if isinstance(error, NoukaiPermanentException | NoukaiJobCancelledException):
            return RetryDecision.fail(reason=str(error))
        if not isinstance(error, NoukaiException):
            return RetryDecision.default()
        asked, delay = error.retry_after, None
        if asked:
            delay = timedelta(seconds=min(asked, self.longest_delay.total_seconds()))
        if isinstance(error, NoukaiRateLimitException) and hasattr(RetryDecision, "reschedule"):
            decision: Any = RetryDecision
            return cast(
                "RetryDecision",
                decision.reschedule(delay, reschedule_timeout=self.reschedule_timeout, reason=str(error)),
            )
        if asked:
            return RetryDecision.retry(delay=delay, reason=f"The server asked to wait {asked:g} s")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return {
            "longest_delay": self.longest_delay.total_seconds(),
            "reschedule_timeout": self.reschedule_timeout.total_seconds(),
        }

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> NoukaiRetryPolicy:
        """Make the policy from what `serialize` returned."""
        return cls(**data)


def _as_airflow_exception(exception: BaseException) -> BaseException:
    from noukai_core import NoukaiError

    return translate(exception) if isinstance(exception, NoukaiError) else exception

"""A retry policy that knows what Noukai's errors mean. For Airflow 3.3 and later."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiPermanentException,
    translate,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


class NoukaiRetryPolicy(RetryPolicy):
    """Waits as long as the server asks for, and does not retry what cannot succeed.

    It is of use for the operator, and for tasks of your own that use the hook: those raise the job client's
    errors, which Airflow alone would retry even when the server has refused for good.

    Args:
        longest_delay: The longest that the server may ask for; if it asks for more, the task waits this long.
    """

    def __init__(self, longest_delay: timedelta = timedelta(hours=1)) -> None:
        self.longest_delay = longest_delay

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide what follows from an error."""
        error = _in_airflows_terms(exception)
        if isinstance(error, NoukaiPermanentException | NoukaiJobCancelledException):
            return RetryDecision.fail(reason=str(error))
        if isinstance(error, NoukaiException) and error.retry_after:
            delay = min(timedelta(seconds=error.retry_after), self.longest_delay)
            return RetryDecision.retry(
                delay=delay, reason=f"The server asked to wait {error.retry_after:g} s"
            )
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return the arguments in a form that JSON can carry."""
        return {"longest_delay": self.longest_delay.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> NoukaiRetryPolicy:
        """Make the policy that `serialize` was called on."""
        return cls(longest_delay=timedelta(seconds=data["longest_delay"]))


def _in_airflows_terms(exception: BaseException) -> BaseException:
    from noukai_core import NoukaiError

    return translate(exception) if isinstance(exception, NoukaiError) else exception

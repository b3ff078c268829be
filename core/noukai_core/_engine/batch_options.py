"""How a batch runs: the options of `Flow.jobs`, checked."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from noukai_core import _validation
from noukai_core._validation import Version, refused, shown
from noukai_core.checks import check_count, check_flag, check_seconds
from noukai_core.output_types import check_output_type


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch runs; the arguments of `Flow.jobs`, checked."""

    version: Version = "production"
    trace: bool = False
    in_order: bool = False
    max_concurrency: int = 1000
    timeout: float | None = None
    poll_interval: float | None = None
    cancel_on_timeout: bool | Callable[[], bool | Awaitable[bool]] = False
    max_cost_usd: Decimal | float | str | None = None
    spent_usd: Decimal | float | str | None = Decimal(0)
    stop_after_failures: int | float | None = None
    stopped: str | None = None
    batch_id: str | uuid.UUID | None = None
    detach: bool = False
    output_type: type[Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.max_concurrency, "max_concurrency")
        for name in ("timeout", "poll_interval"):
            if getattr(self, name) is not None:
                check_seconds(getattr(self, name), name)
        for name in ("trace", "in_order", "detach"):
            check_flag(getattr(self, name), name)
        if not callable(self.cancel_on_timeout):
            check_flag(self.cancel_on_timeout, "cancel_on_timeout")
        _validation.version_number(self.version)
        if self.stop_after_failures is not None:
            _check_failures(self.stop_after_failures)
        if self.batch_id is not None:
            _validation.session_id(self.batch_id, "batch_id")
        check_output_type(self.output_type)
        if self.in_order and self.detach:
            raise refused(
                "in_order and detach exclude each other: a detached batch waits for no earlier input"
            )
        self.most_usd()
        self.already_spent_usd()

    def most_usd(self) -> Decimal | None:
        """Return the most that the jobs may cost."""
        return None if self.max_cost_usd is None else _dollars(self.max_cost_usd, "max_cost_usd")

    def already_spent_usd(self) -> Decimal | None:
        """Return what earlier runs cost; `None` if that is not known."""
        return None if self.spent_usd is None else _dollars(self.spent_usd, "spent_usd", zero=True)


def _dollars(value: object, argument: str, *, zero: bool = False) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if isinstance(value, bool) or not amount.is_finite() or amount < 0 or (amount == 0 and not zero):
        raise refused(
            f"{argument} is {shown(value)}, but must be an amount of US dollars "
            f"{'of 0 or more' if zero else 'above 0'}"
        )
    return amount


def _check_failures(limit: object) -> None:
    if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1:
        return
    if isinstance(limit, float) and 0 < limit < 1:
        return
    raise refused(
        f"stop_after_failures is {shown(limit)}, but must be a whole number above 0, or a share between 0 "
        "and 1 such as 0.05"
    )

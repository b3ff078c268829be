"""In the place of the drivers of a batch: its strands are tasks of a process in virtual time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, Self

from noukai_core import JobOutcome
from noukai_core._async_batch import perform_all
from noukai_core._batch_handle import BatchHandle
from noukai_core._engine.batch import Batch
from noukai_core._engine.effects import Ask, Effects, Given, Record, Sleep, Spawn, Take, Wake
from noukai_core.batch import BatchLedger
from noukai_core.cancellation import CancelOutcome
from tests.simulation.effect import Effect

log = logging.getLogger("noukai_core")


class Running(Protocol):
    """What the process has made of a coroutine."""

    def interrupt(self) -> None:
        """Cancel it."""


class SimulatedBatch(BatchHandle):
    """The outcomes of many jobs, as they end.

    Args:
        batch: What decides.
        inputs: Its inputs.
        ledger: What it writes into. A write may be a coroutine.
        start: Runs a coroutine beside the others of its process.
        clock: The clock of that process.

    Attributes:
        stands_still: Whether nothing happens while the caller does not ask for an outcome, as in the
            blocking driver.
    """

    def __init__(
        self,
        batch: Batch,
        inputs: Iterable[Any],
        ledger: BatchLedger,
        start: Callable[[str, Coroutine[Any, Any, Any]], Running],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(batch)
        self._given = (Given(index, value) for index, value in enumerate(inputs))
        self._ledger = ledger
        self._start = start
        self._clock = clock
        self._returned_at = math.inf
        self._strands: list[Running] = []
        self._begun = False
        self.stands_still = False
        self._is_asked = True
        self._asked = Wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobOutcome:
        batch = self._batch
        self._is_asked = True
        batch.stalls.note(self._returned_at, self._clock())
        self._asked.ring()
        if not self._begun:
            self._resume()
            self._spawn("the first strand", batch.effects())
        while not batch.outcomes and not batch.over:
            await Effect(Sleep(math.inf, batch.changed))
        if batch.outcomes and batch.error is None:
            self._is_asked = not self.stands_still
            self._returned_at = self._clock() if self.stands_still else math.inf
            return batch.take_outcome()
        self._end_strands()
        raise batch.error or StopAsyncIteration

    async def cancel(self, reason: str) -> list[CancelOutcome]:
        """End the strands, and cancel all that is left running."""
        self._end_strands()
        self._is_asked = True
        if not self._begun:
            self._resume()
        outcomes: list[CancelOutcome] = []
        indexes = list(self._batch.unfinished)
        ended = 0
        done = Wake()

        async def cancel(index: int) -> None:
            nonlocal ended
            outcome = await perform_all(self._batch.cancelling(index), self._perform)
            self._log_cancelled(outcome, reason)
            ended += 1
            if outcome is not None:
                outcomes.append(outcome)
            done.ring()

        for index in indexes:
            self._start(f"the cancel of input {index}", cancel(index))
        while ended < len(indexes):
            await Effect(Sleep(math.inf, done))
        return outcomes

    def _end_strands(self) -> None:
        for strand in self._strands:
            strand.interrupt()

    def _resume(self) -> None:
        self._begun = True
        stored: Any = self._ledger.read()
        self._batch.resume(stored)

    def _spawn(self, name: str, effects: Effects[None]) -> None:
        self._strands.append(self._start(name, self._strand(effects)))

    async def _strand(self, effects: Effects[None]) -> None:
        try:
            await perform_all(effects, self._perform)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self._batch.fail(error)
        self._batch.changed.ring()

    async def _perform(self, effect: Any) -> Any:
        match effect:
            case Spawn():
                self._spawn("a strand", effect.effects)
                return None
            case Take():
                return next(self._given, None)
            case Record():
                return await self._record(effect)
            case Ask():
                return effect.question()
            case _:
                outcome = await Effect(effect)
                while not self._is_asked:
                    await Effect(Sleep(math.inf, self._asked))
                return outcome

    async def _record(self, effect: Record) -> Exception | None:
        try:
            written = self._ledger.write(effect.entry)
            if written is not None:
                await written
        except Exception as error:
            return error
        return None

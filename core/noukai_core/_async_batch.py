"""The async driver of a batch: each strand is a task, on the event loop of its client."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Self

from noukai_core._batch_handle import CANCEL_CONCURRENCY, CLOSED, BatchHandle
from noukai_core._engine.batch import Batch
from noukai_core._engine.effects import Ask, Effect, Effects, Given, Record, Sleep, Spawn, T, Take
from noukai_core.batch import BatchLedger, JobOutcome
from noukai_core.cancellation import CancelOutcome


async def perform_all(effects: Effects[T], perform: Callable[[Effect], Awaitable[Any]]) -> T:
    """Run effects to their end, and return what was decided."""
    outcome: Any = None
    try:
        while True:
            try:
                effect = effects.send(outcome)
            except StopIteration as end:
                decided: T = end.value
                return decided
            outcome = await perform(effect)
    finally:
        effects.close()


async def sleep(effect: Sleep) -> None:
    """Sleep for some seconds, or until somebody rings."""
    if effect.wake is None:
        if effect.seconds > 0:
            await asyncio.sleep(effect.seconds)
        return
    if effect.seconds <= 0:
        return
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake_up() -> None:
        if not woken.done():
            woken.set_result(None)

    sleeper = effect.wake.add(wake_up)
    timer = loop.call_later(effect.seconds, wake_up) if math.isfinite(effect.seconds) else None
    try:
        await woken
    finally:
        effect.wake.remove(sleeper)
        if timer is not None:
            timer.cancel()


class AsyncJobBatch(BatchHandle, AsyncIterator[JobOutcome]):
    """The outcomes of many jobs, as they end. Made by `AsyncFlow.jobs`.

    It begins with the first outcome that is asked for. Close it with `aclose`, or use it as an async context
    manager, unless it is iterated to its end: until then, jobs are submitted and polled.
    """

    def __init__(
        self,
        perform: Callable[[Effect], Awaitable[Any]],
        batch: Batch,
        inputs: Iterable[Any] | AsyncIterable[Any],
        ledger: BatchLedger,
        *,
        cancel_on_close: bool,
    ) -> None:
        super().__init__(batch)
        self._perform_other = perform
        self._inputs = _iterate(inputs)
        self._ledger = ledger
        self._cancel_on_close = cancel_on_close
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._taken = 0
        self._begun = self._stopped = self._closed = False

    async def __anext__(self) -> JobOutcome:
        if self._stopped:
            raise StopAsyncIteration
        batch = self._batch
        try:
            if not self._begun:
                await self._resume()
                self._start(batch.effects())
            while not (self._stopped or batch.outcomes or batch.over):
                await sleep(Sleep(math.inf, batch.changed))
        except BaseException:
            if not self._stopped:  # else what becomes of the jobs is left open
                await self.aclose()
            raise
        if self._stopped:
            raise StopAsyncIteration
        if batch.outcomes and batch.error is None:
            return batch.take_outcome()
        if batch.error is not None:
            await self.aclose()
            raise batch.error
        self._closed = True
        await self._end_strands()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Submit and poll nothing more. What runs is left running, or cancelled with `cancel_on_close`.

        A loop over the batch ends, without the outcomes that it has not taken.
        """
        if self._closed:
            return
        if self._cancel_on_close:
            self._log_closed(await self.cancel(CLOSED))
            return
        self._closed = True
        try:
            await self._end_strands()
        finally:
            self._log_left_running()

    async def stop(self) -> None:
        """Submit and poll nothing more, and leave what happens to the jobs to `cancel` or `aclose`.

        A loop over the batch ends, without the outcomes that it has not taken. From then on, `unfinished`
        includes what an earlier run left, even if this one has not begun: its ledger is read then, and what
        that raises is raised.
        """
        await self._end_strands()
        if not self._begun:
            await self._resume()

    async def cancel(self, reason: str) -> list[CancelOutcome]:
        """Close the batch, and cancel what is left running, even of a submission that was interrupted.

        This includes what an earlier run left, even if this one has not begun.

        Args:
            reason: Why, for the log.

        Returns:
            What came of each attempt. No error of the job client is raised.
        """
        self._closed = True
        try:
            await self.stop()
            return await self._cancel_unfinished(reason)
        except BaseException:
            self._log_left_running()
            raise

    async def _cancel_unfinished(self, reason: str) -> list[CancelOutcome]:
        semaphore = asyncio.Semaphore(CANCEL_CONCURRENCY)

        async def cancel(index: int) -> CancelOutcome | None:
            async with semaphore:
                outcome = await perform_all(self._batch.cancelling(index), self._perform)
                return self._log_cancelled(outcome, reason)

        outcomes = await asyncio.gather(*(cancel(index) for index in self._batch.unfinished))
        return [outcome for outcome in outcomes if outcome is not None]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _resume(self) -> None:
        self._begun = True  # before the ledger is awaited: another task may ask for an outcome, too
        try:
            read = self._ledger.read()
            stored = await read if inspect.isawaitable(read) else read
        except BaseException:
            self._begun = False
            raise
        self._batch.resume(stored)

    def _start(self, effects: Effects[None]) -> None:
        task = asyncio.ensure_future(perform_all(effects, self._perform_unless_stopped))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self._stopped:  # the inputs or the ledger raised it, as a loop over them would
                self._batch.fail(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._batch.fail(error)
        self._batch.changed.ring()

    async def _end_strands(self) -> None:
        self._stopped = True
        self._batch.changed.ring()  # another task may wait for an outcome
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        close = getattr(self._inputs, "aclose", None)
        if close is not None and current not in self._tasks:  # else the inputs themselves end the batch
            await close()

    async def _perform_unless_stopped(self, effect: Effect) -> Any:
        if self._stopped:  # what the strand waited for has swallowed its cancellation
            raise asyncio.CancelledError
        return await self._perform(effect)

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Spawn():
                self._start(effect.effects)
                return None
            case Take():
                return await self._take()
            case Record():
                return await self._record(effect)
            case Ask():
                decision = effect.question()
                return await decision if inspect.isawaitable(decision) else decision
            case _:
                return await self._perform_other(effect)

    async def _take(self) -> Given | Exception | None:
        async with self._turn:
            try:
                value = await anext(self._inputs)
            except StopAsyncIteration:
                return None
            except Exception as error:
                return error
            self._taken += 1
            return Given(self._taken - 1, value)

    async def _record(self, effect: Record) -> Exception | None:
        try:
            written = self._ledger.write(effect.entry)
            if inspect.isawaitable(written):
                await written
        except Exception as error:
            return error
        return None


async def _iterate(inputs: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(inputs, AsyncIterable):
        async for value in inputs:
            yield value
    else:
        for value in inputs:
            yield value

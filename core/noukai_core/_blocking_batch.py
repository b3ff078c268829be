"""The blocking driver of a batch: strands take turns on the caller's thread, and requests run in a pool."""

from __future__ import annotations

import contextlib
import heapq
import inspect
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeAlias

from noukai_core._batch_handle import CANCEL_CONCURRENCY, CLOSED, BatchHandle
from noukai_core._engine.batch import Batch
from noukai_core._engine.effects import Ask, Effects, Emit, Given, Record, Send, Sleep, Spawn, Take, Wake
from noukai_core.batch import BatchLedger, JobOutcome
from noukai_core.cancellation import CancelOutcome
from noukai_core.errors import InvalidInputError

_REQUESTS = 32
"""How many requests of a batch are open at the same time."""

_LONGEST_WAIT = 3600.0


class _Strand:
    """Effects that run beside others.

    Attributes:
        effects: The effects.
        turn: How many effects were performed; what is late for one is dropped.
    """

    __slots__ = ("effects", "on_end", "sleeper", "turn")

    def __init__(self, effects: Effects[Any], on_end: Callable[[Any], None] | None = None) -> None:
        self.effects = effects
        self.turn = 0
        self.on_end = on_end
        self.sleeper: tuple[Wake, object] | None = None


_Results: TypeAlias = queue.SimpleQueue[tuple[_Strand, int, Any] | None]


class JobBatch(BatchHandle, Iterator[JobOutcome]):
    """The outcomes of many jobs, as they end. Made by `Flow.jobs`.

    Jobs are submitted and polled while an outcome is asked for, and not while the body of a loop runs. Close
    it with `close`, or use it as a context manager, unless it is iterated to its end.

    One thread at a time asks for an outcome, in the process in which the batch began; another one gets an
    `InvalidInputError`. Any thread, and a signal handler, may close, stop or cancel the batch meanwhile.
    """

    def __init__(
        self,
        send: Callable[[Send, Callable[[], bool]], Any],
        check_process: Callable[[], None],
        batch: Batch,
        inputs: Iterable[Any],
        ledger: BatchLedger,
        *,
        cancel_on_close: bool,
    ) -> None:
        super().__init__(batch)
        self._send = send
        self._check_process = check_process
        self._iterating = threading.Lock()
        self._inputs = iter(inputs)
        self._ledger = ledger
        self._cancel_on_close = cancel_on_close
        self._pool: ThreadPoolExecutor | None = None
        self._ready: deque[tuple[_Strand, int, Any]] = deque()
        self._timers: list[tuple[float, int, _Strand, int]] = []
        self._results: _Results = queue.SimpleQueue()
        self._strands: set[_Strand] = set()
        self._timer_count = 0
        self._ran_at = math.inf
        self._taken = 0
        self._begun = self._stopped = self._closed = False

    def __next__(self) -> JobOutcome:
        if self._stopped:
            raise StopIteration
        self._check_process()
        if not self._iterating.acquire(blocking=False):
            raise InvalidInputError(
                f"an outcome of the batch of {self.flow} is being waited for already: one thread at a time "
                "may iterate over a batch"
            )
        try:
            return self._next()
        finally:
            self._iterating.release()

    def _next(self) -> JobOutcome:
        batch = self._batch
        try:
            if not self._begun:
                self._resume()
                self._start(_Strand(batch.effects()))
            self._run_until(lambda: self._stopped or bool(batch.outcomes) or batch.over)
        except BaseException:
            self.close()
            raise
        if self._stopped:
            raise StopIteration
        if batch.outcomes and batch.error is None:
            return batch.take_outcome()
        if batch.error is not None:
            self.close()
            raise batch.error
        self._closed = True
        self._end_strands()
        raise StopIteration

    def close(self) -> None:
        """Submit and poll nothing more. What runs is left running, or cancelled with `cancel_on_close`.

        A loop over the batch ends, without the outcomes that it has not taken.
        """
        if self._closed:
            return
        if self._cancel_on_close:
            self._log_closed(self.cancel(CLOSED))
            return
        self._closed = True
        try:
            self._end_strands()
        finally:
            self._log_left_running()

    def stop(self) -> None:
        """Submit and poll nothing more, and leave what happens to the jobs to `cancel` or `close`.

        A loop over the batch ends, without the outcomes that it has not taken. From then on, `unfinished`
        includes what an earlier run left, even if this one has not begun: its ledger is read then, and what
        that raises is raised.
        """
        self._end_strands()
        if not self._begun:
            self._resume()

    def cancel(self, reason: str) -> list[CancelOutcome]:
        """Close the batch, and cancel what is left running, even of a submission that was interrupted.

        This includes what an earlier run left, even if this one has not begun.

        Args:
            reason: Why, for the log.

        Returns:
            What came of each attempt. No error of the job client is raised.
        """
        self._closed = True
        try:
            self.stop()
            return self._cancel_unfinished(reason)
        except BaseException:
            self._log_left_running()
            raise

    def _cancel_unfinished(self, reason: str) -> list[CancelOutcome]:
        waiting = deque(self._batch.unfinished)
        outcomes: list[CancelOutcome] = []
        running = 0

        def ended(outcome: Any) -> None:
            nonlocal running
            running -= 1
            if self._log_cancelled(outcome, reason) is not None:
                outcomes.append(outcome)
            begin()

        def begin() -> None:
            nonlocal running
            while waiting and running < CANCEL_CONCURRENCY:
                running += 1
                self._start(_Strand(self._batch.cancelling(waiting.popleft()), ended))

        begin()
        try:
            self._run_until(lambda: not running and not waiting)
        finally:
            self._end_strands()
        return outcomes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resume(self) -> None:
        stored = self._ledger.read()
        self._begun = True
        if inspect.isawaitable(stored):
            raise InvalidInputError("the ledger is async, but the client is not: use AsyncNoukai")
        self._batch.resume(stored)

    def _run_until(self, done: Callable[[], bool]) -> None:
        while True:
            results = self._results  # read before the question, since what ends this loop replaces it after
            if done():
                return
            if not self._ready:
                self._wait(results)
                if done():
                    return
                self._collect(results)
            if self._ready:
                self._step_next()

    def _step_next(self) -> None:
        self._note_stall()
        strand, turn, value = self._ready.popleft()
        if turn == strand.turn and strand in self._strands:
            self._step(strand, value)

    def _wait(self, results: _Results) -> None:
        """Wait for a response, or until the next sleep ends."""
        self._note_stall()
        wait = min(self._timers[0][0] - time.monotonic(), _LONGEST_WAIT) if self._timers else _LONGEST_WAIT
        if wait > 0:
            with contextlib.suppress(queue.Empty):
                self._note(results.get(timeout=wait))
        self._ran_at = time.monotonic()

    def _note_stall(self) -> None:
        """Take note of how long the caller, its inputs or its ledger kept this thread busy."""
        now = time.monotonic()
        self._batch.stalls.note(self._ran_at, now)
        self._ran_at = now

    def _collect(self, results: _Results) -> None:
        """Note whose sleep has ended, and which responses have come."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, strand, turn = heapq.heappop(self._timers)
            self._ready.append((strand, turn, None))
        with contextlib.suppress(queue.Empty):
            while True:
                self._note(results.get_nowait())

    def _note(self, result: tuple[_Strand, int, Any] | None) -> None:
        if result is not None:
            self._ready.append(result)

    def _start(self, strand: _Strand) -> None:
        self._strands.add(strand)
        self._ready.append((strand, 0, None))

    def _step(self, strand: _Strand, value: Any) -> None:
        """Run a strand until it waits for something."""
        if strand.sleeper is not None:
            wake, sleeper = strand.sleeper
            wake.remove(sleeper)
            strand.sleeper = None
        while strand in self._strands:
            strand.turn += 1
            try:
                if isinstance(value, _Raised):
                    raise value.error
                effect = strand.effects.send(value)
            except StopIteration as end:
                self._strands.discard(strand)
                if strand.on_end is not None:
                    strand.on_end(end.value)
                return
            value = None
            match effect:
                case Sleep():
                    if effect.seconds > 0:
                        self._sleep(strand, effect)
                        return
                case Send():
                    self._request(strand, effect)
                    return
                case Spawn():
                    self._start(_Strand(effect.effects))
                case Take():
                    value = self._take()
                case Record():
                    value = self._record(effect)
                case Ask():
                    value = self._ask(effect)
                case Emit():
                    pass
        strand.effects.close()  # the inputs or the ledger have closed the batch

    def _sleep(self, strand: _Strand, effect: Sleep) -> None:
        turn, wake = strand.turn, effect.wake
        if math.isfinite(effect.seconds):
            self._timer_count += 1
            ends = time.monotonic() + effect.seconds
            heapq.heappush(self._timers, (ends, self._timer_count, strand, turn))
        if wake is not None:
            strand.sleeper = (wake, wake.add(lambda: self._ready.append((strand, turn, None))))

    def _request(self, strand: _Strand, effect: Send) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="noukai-batch")
        turn, results = strand.turn, self._results

        def send() -> None:
            try:
                outcome = self._send(effect, lambda: strand.turn == turn)
            except BaseException as error:
                outcome = _Raised(error)
            results.put((strand, turn, outcome))

        self._pool.submit(send)

    def _take(self) -> Given | Exception | None:
        try:
            value = next(self._inputs)
        except StopIteration:
            return None
        except Exception as error:
            return error
        self._taken += 1
        return Given(self._taken - 1, value)

    def _ask(self, effect: Ask) -> bool:
        decision = effect.question()
        if not inspect.isawaitable(decision):
            return decision
        if isinstance(decision, Coroutine):
            decision.close()
        self._batch.fail(
            InvalidInputError("cancel_on_timeout is async, but the client is not: use AsyncNoukai")
        )
        return False

    def _record(self, effect: Record) -> Exception | None:
        try:
            written = self._ledger.write(effect.entry)
        except Exception as error:
            return error
        if inspect.isawaitable(written):
            return InvalidInputError("the ledger is async, but the client is not: use AsyncNoukai")
        return None

    def _end_strands(self) -> None:
        self._stopped = True
        strands = tuple(self._strands)
        # Before anything that an interruption could cut short: a request that waits for its turn is not sent.
        for strand in strands:
            strand.turn += 1
        self._strands.clear()
        self._ready.clear()
        self._timers.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        # A signal handler or another thread may end the wait of a loop, which must not take its responses.
        self._results.put(None)
        self._results = queue.SimpleQueue()
        # If one is interrupted, the others are closed nonetheless.
        with contextlib.ExitStack() as closing:
            for strand in strands:
                if inspect.getgeneratorstate(strand.effects) != inspect.GEN_RUNNING:
                    closing.callback(strand.effects.close)


class _Raised:
    """An exception of a request that is no `APIError`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

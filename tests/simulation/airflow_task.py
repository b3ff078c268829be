"""An Airflow task on the simulated network: tries, deferrals, a triggerer, and people who end or clear it."""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred

import noukai_airflow._submit
import noukai_airflow._task_states
import noukai_airflow._wait
import noukai_airflow._worker_kill
import noukai_core.async_client
import noukai_core.client  # noqa: F401
from noukai_airflow import _client_cache
from noukai_airflow._cancelling_trigger import CancellingTrigger
from noukai_airflow._compat import AirflowTaskTerminated
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_core._http import connection
from tests.simulation.clock import Clock, LivingClock
from tests.simulation.interleaving import Interleaving, LiveProcess
from tests.simulation.process import StoreError
from tests.simulation.server import FLOW
from tests.simulation.simulation import Simulation
from tests.simulation.threads import Threads
from tests.simulation.transports import (
    BASE_URL,
    AsyncTransport,
    Blocking,
    BlockingTransport,
    Killed,
    ThreadTransport,
    VirtualLoop,
)

RETRIES = 2
SECONDS_TO_KILL = 5.0
HEARTBEAT_TIMEOUT = 300.0
TRIGGERER_TIMEOUT = 30.0

PERSONS_STATES = {"marks it failed": "failed", "marks it success": "success", "clears it": "restarting"}


class TaskInstance:
    """What the provider uses of a task instance."""

    dag_id = "dag"
    run_id = "run"
    task_id = "task"
    map_index = -1

    def __init__(self, task: AirflowTask) -> None:
        self._task = task
        self.id = uuid.UUID(int=task.try_number)  # a later try has a greater one
        self.try_number = task.try_number
        self.max_tries = task.max_tries

    def xcom_push(self, key: str, value: Any) -> None:
        # Airflow does not refuse that of a worker that it has taken for dead: its token is valid.
        self._task.blocking.sleep(0.01)
        self._task.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self._task.xcoms.get(key)

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        if self._task.choices.happens("Airflow does not tell states", 0.1):
            raise RuntimeError("the API server is away")
        return {self.run_id: {self.task_id: self._task.state}}


class TaskStore:
    """The task state store of Airflow, which outlives tries; it fails, or is slow.

    A try of the task has an id of its own. With that of an earlier try, the API server knows no task: it
    responds with 404, which Airflow's SDK takes for a key that is not there when it reads.
    """

    def __init__(self, task: AirflowTask, worker: Blocking) -> None:
        self._task = task
        self._worker = worker

    def get(self, key: str) -> Any:
        self._access("read")
        if self._task.has_new_id(self._worker):
            return None
        return copy.deepcopy(self._task.simulation.store.get(key))

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        end = self._task.choices.pick("end of a write", ("written", "failed", "written, but failed"), 0.06)
        self._access("write")
        self._check_id()
        if end != "failed":
            self._task.simulation.store[key] = copy.deepcopy(value)
        self._task.tell("the store: {0} {1}", value, end)
        if end != "written":
            raise StoreError(end)

    def delete(self, key: str) -> None:
        self._access("delete")
        self._check_id()
        self._task.simulation.store.pop(key, None)
        self._task.tell("the store: {0} is forgotten", key)

    def _check_id(self) -> None:
        if self._task.has_new_id(self._worker):
            raise StoreError("404: task instance not found")

    def _access(self, what: str) -> None:
        self._worker.sleep(self._task.choices.pick(f"slowness of a {what}", (0.01, 3.0, 30.0), 0.05))


class _Triggerer(LiveProcess):
    """A triggerer that runs one trigger.

    Attributes:
        ends: Is set when it is to end, while it runs.
        how: How it ends.
    """

    def __init__(self, number: int, clock: Clock) -> None:
        super().__init__(number, clock)
        self.ends: asyncio.Event | None = None
        self.how = ""


class _Deferral:
    """A task that waits for the first event of its trigger.

    Attributes:
        deferred: What the task has raised.
        triggerer: The triggerer in which Airflow lets the trigger run; one that has stalled may run it too.
        over: Whether the task waits no more.
    """

    def __init__(self, deferred: TaskDeferred) -> None:
        self.deferred = deferred
        self.triggerer: _Triggerer | None = None
        self.over = False


class AirflowTask:
    """One task with its tries.

    Attributes:
        state: Its state in Airflow's database.
        lines: What was logged or raised, with the time.
        acts: When a person ended or cleared it.
        act_handled: Whether a process of it could act on that.
        marked: Whether a person has ended it while a process of it ran.
        results: What successful tries returned.
        queued_at: When it was first queued.
        began_at: When the last part of a try began on a worker.
        killed: The processes that were killed without a signal before, so that they could say nothing.
        died: Those that were killed in the end, whether or not a signal came before.
        triggerer_killed: Whether a triggerer was.
        timed_out_at: When a try has decided that its deadline has passed.
        ended_in: The process in which the last part of a try ended.
        replaced: The workers beside which Airflow has begun another try.
        given_up_last: Whether it has failed the last try of a worker that lives.
        interleaving: Lets its processes run.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.choices = choices = simulation.choices
        self.try_number = 1
        self.max_tries = RETRIES
        self.state = "queued"
        self.xcoms: dict[str, Any] = {}
        self.lines: list[tuple[float, str]] = []
        self.acts: list[float] = []
        self.act_handled = True
        self.marked = False
        self.cleared = False
        self.results: list[Any] = []
        self.over_at: float | None = None
        self.running_at_the_end: list[str] = []
        self.queued_at = simulation.clock.now
        self.began_at = 0.0
        self.killed: set[int] = set()
        self.died: set[int] = set()
        self.triggerer_killed = False
        self.timed_out_at: list[float] = []
        self.ended_in = 0
        self.interleaving = Interleaving(simulation.clock)
        self.durable_store = choices.pick("task state store", (True, False), 0.3)
        self.deferrable = choices.pick("deferrable", (False, True), 0.5)
        self.cancel_on_kill = choices.pick("cancel_on_kill", (True, False), 0.2)
        self.cancel_on_timeout = choices.pick("cancel_on_timeout", (True, False), 0.2)
        self.timeout = choices.pick("timeout of the task", (1000.0, 20.0, 100.0), 0.3)
        self._options = (
            ("timeout", simulation.timeout),
            ("retry_timeout", simulation.retry_timeout),
            ("recovery_timeout", simulation.recovery_timeout),
        )
        self.worker: Blocking | None = None
        self.replaced: set[int] = set()
        self.given_up_last = False
        self._ends: dict[str, Callable[[Blocking], None]] = {
            "killed": self._crash,
            "shut down": self._terminate,
            "given up": self._move,
            "frozen": self._freeze,
        }
        self._deferral: _Deferral | None = None

    def begin(self) -> None:
        """Let the task be queued, and people act on it."""
        clock = self.simulation.clock
        _client_cache._clients.clear()
        clock.after(0.0, self._next_try)
        if self.choices.happens("a person acts", 0.35):
            act = self.choices.pick("a person", tuple(PERSONS_STATES))
            moment = self.choices.pick("after", (2.0, 0.03, 0.05, 6.0, 15.0, 40.0, 400.0))
            clock.after(moment, lambda: self._act(act))

    @property
    def blocking(self) -> Blocking:
        """The worker whose code runs now."""
        running = self.interleaving.running
        assert isinstance(running, Blocking)
        return running

    @property
    def settings(self) -> ConnectionSettings:
        """The connection. The host has a name for each process, as they share the memory of the simulator."""
        url = BASE_URL.replace("://", f"://process-{self.interleaving.running.number}.")
        return ConnectionSettings("noukai_default", "nk_test_simulated_airflow", url, options=self._options)

    def has_new_id(self, worker: Blocking) -> bool:
        """Whether the task has got a new id since a worker began its try."""
        return worker.number in self.replaced

    def tell(self, line: str, *about: object) -> None:
        """Add a line to the story."""
        self.simulation.story.tell(line, *about)

    def logged(self, line: str) -> None:
        """Take what was logged or raised."""
        process = self.interleaving.running
        if "outside of the Task Runner" in line or (isinstance(process, Blocking) and not process.alive):
            return
        self.lines.append((self.simulation.clock.now, line))
        self.tell("log: {0}", line)

    def structured(self, logger: Any, name: str, event: Any) -> Any:
        """Take what was logged by way of structlog."""
        self.logged(str(event["event"]))
        raise structlog.DropEvent

    def running(self) -> list[str]:
        """Return the jobs that run now."""
        now = self.simulation.clock.now
        return [
            job.id
            for job in self.simulation.server.jobs.values()
            if not job.finished(now) and now < job.cancelled_at
        ]

    def _act(self, act: str) -> None:
        if self.over_at is not None:
            return
        self.tell("a person {0}", act)
        alive = self.state in ("running", "deferred")
        self.marked = alive and act != "clears it"
        self.acts.append(self.simulation.clock.now)
        # A mark between two tries is left to the plugin in the API server, which is not simulated.
        self.act_handled = not alive and act == "clears it"
        before, self.state = self.state, PERSONS_STATES[act]
        self.cleared = act == "clears it"
        if before == "running":
            assert self.worker is not None
            self._terminate(self.worker)
        elif before == "deferred":
            assert self._deferral is not None
            if self._deferral.triggerer is not None:
                self._end_triggerer(self._deferral.triggerer, "left, as a person acted")
        elif self.cleared:
            self._clear()
        else:
            self._finish()

    def _terminate(self, worker: Blocking) -> None:
        """Let the supervisor of a worker end it, which stands still while the worker does."""
        clock = self.simulation.clock

        def signal() -> None:
            worker.signalled = True
            clock.after(SECONDS_TO_KILL, lambda: self._kill(worker))

        if worker.frozen_until > clock.now:
            clock.at(worker.frozen_until, signal)
        else:
            signal()

    @staticmethod
    def _kill(worker: Blocking) -> None:
        worker.alive = False

    def _clear(self) -> None:
        self.cleared = False
        if self.worker is not None and self.worker.alive:  # a mark has not ended it yet
            self.replaced.add(self.worker.number)
        self.max_tries = self.try_number + RETRIES
        self.try_number += 1
        self.state = "queued"
        self.simulation.clock.after(1.0, self._next_try)

    def _finish(self) -> None:
        self.over_at = self.simulation.clock.now
        self.running_at_the_end = self.running()
        self.tell("the task is {0}; running: {1}", self.state, self.running_at_the_end)

    def _next_try(self) -> None:
        if self.over_at is not None or self.state not in ("queued", "up_for_retry"):
            return
        self.xcoms.clear()
        self._run("execute", {})

    def _new_worker(self) -> Blocking:
        simulation = self.simulation
        wall_error = self.choices.pick("error of the wall clock", (0.0, 600.0, -600.0, 45.0), 0.1)
        simulation.clock_errors |= wall_error != 0.0
        worker = Blocking(
            len(simulation.live) + 1, self.interleaving, simulation.network, simulation.clock, wall_error
        )
        simulation.live.append(worker)
        self._plan_an_end(worker)
        return worker

    def _plan_an_end(self, worker: Blocking) -> None:
        if not self.choices.happens("a worker ends", 0.4):
            return
        how = self.choices.pick("how", tuple(self._ends))
        number = 1 + self.choices.index("effect at which it ends", 16)
        moment = self.choices.pick("when in it", (-1.0, 0.01, 0.03, 5.0, 40.0))
        effects = 0

        def end() -> None:
            if worker.alive and worker is self.worker and self.state == "running":
                self.tell("process {0} is {1}", worker.number, how)
                self._ends[how](worker)

        def on_wait() -> None:
            nonlocal effects
            effects += 1
            if effects == number:
                if moment < 0:
                    end()
                    if worker.frozen_until > worker.clock.now:
                        worker.thaw()
                else:
                    self.simulation.clock.after(moment, end)

        worker.on_wait = on_wait

    def _crash(self, worker: Blocking) -> None:
        self.killed.add(worker.number)
        self._kill(worker)

    def _freeze(self, worker: Blocking) -> None:
        """Let the machine of a worker be paused, until Airflow has missed its heartbeats or for longer."""
        clock = self.simulation.clock
        worker.freeze(self.choices.pick("frozen for", (301.0, 330.0, 600.0)))
        clock.after(HEARTBEAT_TIMEOUT, lambda: self._presume_dead(worker))
        notices = self.choices.pick("the supervisor notices after", (0.05, 3.0))
        clock.at(worker.frozen_until + notices, lambda: self._terminate(worker))

    def _move(self, worker: Blocking) -> None:
        """Let a scheduler give up a worker that lives, as one does that adopts the tasks of another one."""
        self._presume_dead(worker)
        notices = self.choices.pick("the supervisor notices after", (5.0, 0.1, 30.0))
        self.simulation.clock.after(notices, lambda: self._terminate(worker))

    def _presume_dead(self, worker: Blocking) -> None:
        """Let Airflow begin the next try, if there is one, beside a worker of this one."""
        if not worker.alive or worker is not self.worker or self.state not in ("running", "restarting"):
            return
        self.tell("Airflow takes process {0} for dead", worker.number)
        worker.presumed_dead_at = self.simulation.clock.now
        self.killed.add(worker.number)
        self._ended(None)
        if self.over_at is None:
            self.replaced.add(worker.number)
        else:
            self.given_up_last = True

    def _run(self, method: str, arguments: dict[str, Any]) -> None:
        """Run one part of a try on a worker."""
        self.state = "running"
        self.began_at = self.simulation.clock.now
        self.worker = worker = self._new_worker()
        self.ended_in = worker.number
        worker.start_main(lambda: self._work(worker, method, arguments))

    def _work(self, worker: Blocking, method: str, arguments: dict[str, Any]) -> None:
        """Run one part of a try, and see to what follows, unless Airflow has given up its worker before."""
        operator = self.operator()
        context: Any = {"ti": TaskInstance(self)}
        if self.durable_store:
            context["task_state_store"] = TaskStore(self, worker)
        noukai_airflow._submit._returned.clear()  # a new process has returned nothing
        worker.on_signal = operator.on_kill
        self.tell("process {0} runs {1} of try {2}", worker.number, method, self.try_number)
        deferred: TaskDeferred | None = None
        error: BaseException | None = None
        result: Any = None
        try:
            if method == "execute":
                result = operator.execute(context)
            else:
                result = operator.resume_execution(method, arguments, context)
        except TaskDeferred as raised:
            worker.signalled = False
            deferred = raised
        except Killed as raised:
            worker.alive = False
            self.died.add(worker.number)
            error = raised
        except BaseException as raised:
            if not isinstance(raised, Exception) and not isinstance(raised, AirflowTaskTerminated):
                raise
            self.logged(f"raised {type(raised).__name__}: {raised}")
            self.act_handled |= worker.presumed_dead_at is None
            error = raised
        worker.alive = False
        if worker.presumed_dead_at is not None or self.has_new_id(worker):
            self.tell("process {0} ends, and Airflow does not take what it came to", worker.number)
        elif isinstance(error, Killed):
            self._ended(None)
        elif error is not None:
            self._ended(error)
        elif deferred is not None and self.state == "running":
            self._defer(deferred)
        elif deferred is not None:
            self._ended(RuntimeError("the deferral came too late"))
        else:
            self.tell("the try returns {0}", result)
            self.take_result(result)
            if self.state == "running":
                self.state = "success"
                self._finish()
            else:
                self._ended(None)

    def _ended(self, error: BaseException | None) -> None:
        """Decide what follows a part of a try that has ended without success; `None`: its process died."""
        if self.state in ("failed", "success"):
            self._finish()
        elif self.cleared:
            self._clear()
        elif isinstance(error, AirflowSkipException):
            self.state = "skipped"
            self._finish()
        elif (
            isinstance(error, AirflowFailException | AirflowTaskTerminated)
            or self.try_number > self.max_tries
        ):
            self.state = "failed"
            self._finish()
        else:
            self.state = "up_for_retry"
            self.try_number += 1
            pause = self.choices.pick("pause before the retry", (1.0, 30.0, 70.0, 300.0, 900.0))
            self.simulation.clock.after(pause, self._next_try)

    def _defer(self, deferred: TaskDeferred) -> None:
        self.state = "deferred"
        self._deferral = deferral = _Deferral(deferred)
        self.tell("the task defers")
        self.simulation.clock.after(0.1, lambda: self._start_triggerer(deferral))

    def _start_triggerer(self, deferral: _Deferral) -> None:
        if deferral.over:
            return
        if self.state != "deferred":
            deferral.over = True
            self._ended(None)
            return
        simulation = self.simulation
        deferral.triggerer = triggerer = _Triggerer(len(simulation.live) + 1, simulation.clock)
        simulation.live.append(triggerer)
        self._plan_an_end_of_triggerer(triggerer, deferral)
        self.interleaving.start(triggerer, lambda: self._wait_in_triggerer(triggerer, deferral))

    def _plan_an_end_of_triggerer(self, triggerer: _Triggerer, deferral: _Deferral) -> None:
        if not self.choices.happens("a triggerer ends", 0.4):
            return
        how = self.choices.pick("how the triggerer ends", ("killed", "handed over", "stalled"))
        seconds = self.choices.pick("triggerer ends after", (1.0, 10.0, 100.0))

        def end() -> None:
            if how == "stalled":
                self._stall(triggerer, deferral)
            else:
                self._end_triggerer(triggerer, how)

        self.simulation.clock.after(seconds, end)

    def _stall(self, triggerer: _Triggerer, deferral: _Deferral) -> None:
        """Let Airflow miss the heartbeats of a triggerer, which stands still or only cannot reach Airflow."""
        clock = self.simulation.clock
        if triggerer.ends is None or triggerer.how:
            return
        self.tell("triggerer {0} stalls", triggerer.number)
        triggerer.freeze(self.choices.pick("stalled for", (31.0, 0.0, 60.0, 300.0)))
        clock.after(TRIGGERER_TIMEOUT, lambda: self._hand_over(triggerer, deferral))
        notices = self.choices.pick("the triggerer notices after", (0.05, 3.0, 60.0))
        noticed_at = max(triggerer.frozen_until, clock.now + TRIGGERER_TIMEOUT) + notices
        clock.at(noticed_at, lambda: self._end_triggerer(triggerer, "handed over"))

    def _hand_over(self, triggerer: _Triggerer, deferral: _Deferral) -> None:
        """Let another triggerer run the trigger of one that Airflow takes for dead."""
        if not deferral.over and triggerer is deferral.triggerer and not triggerer.how:
            self.tell("Airflow takes triggerer {0} for dead", triggerer.number)
            triggerer.presumed_dead_at = self.simulation.clock.now
            self._start_triggerer(deferral)

    def _wait_in_triggerer(self, triggerer: _Triggerer, deferral: _Deferral) -> None:
        """Run a trigger; its first event in whichever triggerer resumes the task."""
        deferred = deferral.deferred
        trigger: Any = deferred.trigger
        _, arguments = trigger.serialize()
        running = type(trigger)(**arguments)
        running.trigger_id = triggerer.number  # as a triggerer does, unlike `airflow dags test`
        payload = self._trigger(triggerer, running)
        clock, current = self.simulation.clock, deferral.triggerer
        if deferral.over:
            self.tell("triggerer {0} ends, and nothing waits for its event", triggerer.number)
        elif payload is not None and self.state == "deferred":
            deferral.over = True
            if current is not None and current is not triggerer:
                clock.after(1.0, lambda: self._end_triggerer(current, "without its trigger"))
            resumed = {**(deferred.kwargs or {}), "event": payload}
            clock.after(0.0, lambda: self._resume(deferred, resumed))
        elif triggerer is not current:
            self.tell("triggerer {0} ends, and another one runs its trigger", triggerer.number)
        elif self.state == "deferred":
            pause = self.choices.pick("until the next triggerer", (1.0, 40.0))
            clock.after(pause, lambda: self._start_triggerer(deferral))
        else:
            deferral.over = True
            self._ended(None)

    def _resume(self, deferred: TaskDeferred, arguments: dict[str, Any]) -> None:
        if self.state == "deferred":
            self._run(deferred.method_name, arguments)
        else:
            self._ended(None)

    def _trigger(self, triggerer: _Triggerer, trigger: CancellingTrigger) -> Any:
        """Run a trigger in a triggerer of its own; `None` when it ended without an event."""
        clock = self.simulation.clock
        trigger.task_instance = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", map_index=-1)
        self.tell("triggerer {0} waits", triggerer.number)
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock, self.interleaving)) as runner:
            try:
                return runner.run(self._triggering(triggerer, trigger))
            finally:
                triggerer.ends = None

    def _end_triggerer(self, triggerer: _Triggerer, how: str) -> None:
        if triggerer.ends is not None and not triggerer.how:
            self.tell("triggerer {0} is {1}", triggerer.number, how)
            triggerer.how = how
            triggerer.ends.set()

    async def _triggering(self, triggerer: _Triggerer, trigger: CancellingTrigger) -> Any:
        async def first() -> Any:
            async for event in trigger.run():
                return event.payload
            return None

        waiting = asyncio.ensure_future(first())
        triggerer.ends = asyncio.Event()
        ends = asyncio.ensure_future(triggerer.ends.wait())
        await asyncio.wait({waiting, ends}, return_when=asyncio.FIRST_COMPLETED)
        ends.cancel()
        if waiting.done() and not triggerer.how:
            return waiting.result()
        if triggerer.how == "killed":
            self.triggerer_killed = True
            self.simulation.network.cut_off(triggerer.number)
        else:
            # As Airflow does, also when the trigger only moves to another triggerer.
            await trigger.on_kill()
            self.act_handled = True
        waiting.cancel("cancelled")
        await asyncio.wait({waiting})
        await trigger.cleanup()
        return None

    async def state_of_task(self, task: Any) -> str | None:
        if self.choices.happens("Airflow does not tell states", 0.1):
            raise RuntimeError("the API server is away")
        return self.state

    async def published_by_task(self, task: Any, key: str) -> str | None:
        value = self.xcoms.get(key)
        return value if isinstance(value, str) else None

    async def push_status(self, task: Any, key: str, summary: dict[str, Any]) -> None:
        self.xcoms[key] = summary

    def take_result(self, result: Any) -> None:
        """Take what a successful try returned."""
        self.results.append(result)

    def operator(self) -> Any:
        """Return the operator of the task, as a worker makes it from the DAG file."""
        return NoukaiRunJobOperator(
            task_id="task",
            flow=FLOW,
            message="text",
            retries=RETRIES,
            deferrable=self.deferrable,
            timeout=self.timeout,
            cancel_on_kill=self.cancel_on_kill,
            cancel_on_timeout=self.cancel_on_timeout,
        )

    def replacements(self, threads: Threads) -> Iterable[tuple[Any, str, Any]]:
        """Return what the provider's modules have in place of the real, besides what every task needs."""
        return ()


@contextmanager
def airflow_world(living: LivingClock, task: AirflowTask) -> Iterator[None]:
    """Let the provider live in the simulated world."""

    def blocking_transport(*_: Any) -> BlockingTransport:
        return BlockingTransport(task.blocking)

    def async_transport(*_: Any) -> AsyncTransport:
        process = task.interleaving.running
        if isinstance(process, Blocking):
            return ThreadTransport(process)
        return AsyncTransport(process.number, task.simulation.network)

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return task.settings

    real_time_out = noukai_airflow._wait.JobWait.time_out

    def time_out(wait: noukai_airflow._wait.JobWait, *, deliver: bool = True) -> Any:
        task.timed_out_at.append(task.simulation.clock.now)
        return real_time_out(wait, deliver=deliver)

    living.sleeper = lambda seconds: task.blocking.sleep(seconds)
    threads = Threads(lambda: task.blocking)
    with ExitStack() as stack:
        for target, name, value in (
            (connection, "blocking_transport", blocking_transport),
            (connection, "async_transport", async_transport),
            (noukai_airflow._wait.JobWait, "time_out", time_out),
            (NoukaiHook, "settings", property(lambda hook: task.settings)),
            (NoukaiHook, "_read_connection", read_connection),
            (noukai_airflow._worker_kill, "threading", threads.threading),
            # The supervisor's kill, which the process anticipates, comes before this sleep ends.
            (noukai_airflow._worker_kill, "kill_own_process", lambda: task.blocking.sleep(10.0)),
            (noukai_airflow._task_states, "state_of_task", task.state_of_task),
            (noukai_airflow._task_states, "published_by_task", task.published_by_task),
            (noukai_airflow._task_states, "push_status", task.push_status),
            *task.replacements(threads),
        ):
            stack.enter_context(patch.object(target, name, value))
        structlog.configure(processors=[task.structured], cache_logger_on_first_use=False)
        handler = _Handler(task)
        root = logging.getLogger()
        before = root.handlers, root.level
        root.handlers, root.level = [handler], logging.INFO
        try:
            yield
        finally:
            root.handlers, root.level = before
            structlog.reset_defaults()


class _Handler(logging.Handler):
    def __init__(self, task: AirflowTask) -> None:
        super().__init__()
        self._task = task

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("noukai"):
            self._task.logged(record.getMessage())

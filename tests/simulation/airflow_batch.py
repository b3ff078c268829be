"""An Airflow task that runs a batch, on the simulated network."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import noukai_airflow._batch_kill
import noukai_airflow._batch_log
import noukai_airflow._batch_run
import noukai_airflow._batch_thread
import noukai_airflow.triggers.batch
from noukai_airflow._batch_log import FolderLog, StateStoreLog
from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from tests.simulation.airflow_task import PERSONS_STATES, RETRIES, AirflowTask
from tests.simulation.object_storage import ROOT, ObjectStorage, OneAfterTheOther
from tests.simulation.server import FLOW
from tests.simulation.simulation import Simulation
from tests.simulation.threads import Threads

_MOST_RESUBMISSIONS = 8


class AirflowBatch(AirflowTask):
    """One task that runs a job for each of some inputs.

    Attributes:
        inputs: How many inputs there are.
        most_jobs: How many jobs run at the same time.
        job_timeout: Seconds for each job.
        storage: Where the outcomes go, if they do.
        folder: The folder for them there.
        remembers: Whether anything outlives a try.
        durable: Whether a retry continues with the jobs of the try before.
        execution_timeout: Seconds for a try, as far as the provider itself knows of them.
        fail_on: How many jobs have to fail before the task does.
        many: Of twice as many jobs, the results are fetched before all have ended.
        batches: The ids of its batches: each clear begins a new one.
        returned: What successful tries returned, each with the number of its batch.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        choices = self.choices
        self.inputs = 1 + choices.index("inputs", 8)
        self.most_jobs = choices.pick("max_concurrency", (20, 4, 1))
        self.job_timeout = choices.pick("timeout of a job", (None, 3.0, 30.0, 300.0), 0.3)
        self.storage = ObjectStorage(choices, lambda: self.blocking, self.tell)
        self.folder = choices.pick("output_path", (None, ROOT), 0.4)
        self.remembers = self.durable_store or self.folder is not None
        self.durable = self.remembers and choices.pick("durable", (True, False), 0.15)
        self.deferrable = self.deferrable and self.remembers
        limits = (None, 20.0, 100.0) if self.deferrable else (None,)
        self.execution_timeout = choices.pick("execution_timeout", limits, 0.2)
        self.fail_on: Any = choices.pick("fail_on", ("any", "all", 0.5), 0.3)
        self.many = 2 if self.inputs % 2 else 1000  # no choice: each seed would become another schedule
        self.batches: list[str] = []
        self.returned: list[tuple[int, Any]] = []
        self._operators: dict[int, NoukaiRunJobsOperator] = {}

    def _run(self, method: str, arguments: dict[str, Any]) -> None:
        if self.choices.happens("a person acts as the task goes on", 0.08):
            act = self.choices.pick("a person then", tuple(PERSONS_STATES))
            moment = self.choices.pick("then after", (0.01, 0.03, 0.05, 0.1))
            self.simulation.clock.after(moment, lambda: self._act(act))
        super()._run(method, arguments)

    def take_result(self, result: Any) -> None:
        run = self._operators[self.blocking.number]._ended_run
        assert run is not None
        self.returned.append((self.batches.index(str(run.batch_id)), result))

    def operator(self) -> NoukaiRunJobsOperator:
        limit = self.execution_timeout
        operator = self._operators[self.blocking.number] = NoukaiRunJobsOperator(
            task_id="task",
            flow=FLOW,
            inputs=[f"input {index}" for index in range(self.inputs)],
            output_path=self.folder,
            fail_on=self.fail_on,
            retries=RETRIES,
            execution_timeout=limit and timedelta(seconds=limit),
            deferrable=self.deferrable,
            timeout=self.job_timeout,
            max_concurrency=self.most_jobs,
            cancel_on_kill=self.cancel_on_kill,
            cancel_on_timeout=self.cancel_on_timeout,
            durable=self.durable,
        )
        return operator

    def replacements(self, threads: Threads) -> Iterable[tuple[Any, str, Any]]:
        return (
            (StateStoreLog, "write_header", self._noting(StateStoreLog.write_header)),
            (FolderLog, "write_header", self._noting(FolderLog.write_header)),
            (noukai_airflow._batch_run, "storage_path", self.storage.path),
            (noukai_airflow._batch_run, "_MANY_RESULTS", self.many),
            (noukai_airflow._batch_log, "ThreadPoolExecutor", OneAfterTheOther),
            (noukai_airflow._batch_thread, "threading", threads.threading),
            (noukai_airflow._batch_thread, "asyncio", threads.asyncio),
            (noukai_airflow._batch_thread, "Future", threads.future),
            (noukai_airflow._batch_kill, "threading", threads.threading),
            # The supervisor's kill, which the process anticipates, comes before this sleep ends.
            (noukai_airflow._batch_kill, "kill_own_process", lambda: self.blocking.sleep(10.0)),
        )

    def _noting(self, write_header: Callable[[Any, Mapping[str, Any]], None]) -> Any:
        def noted(log: Any, header: Mapping[str, Any]) -> None:
            if header["batch_id"] not in self.batches:
                self.batches.append(header["batch_id"])
            write_header(log, header)

        return noted

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Return the rows of a file in the folder; none if there is no such file."""
        return [json.loads(line) for line in self.storage.files.get(f"{ROOT}/{part}", b"").splitlines()]

    def submissions(self) -> dict[str, tuple[int, int, int]]:
        """Return the batch, the input and the resubmission of each submission, by its id."""
        return {
            str(uuid.uuid5(uuid.UUID(batch), f"{index}:{again}")): (number, index, again)
            for number, batch in enumerate(self.batches)
            for index in range(self.inputs)
            for again in range(_MOST_RESUBMISSIONS)
        }

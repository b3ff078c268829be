"""The trigger of an `AssetWatcher`: an event for each run of a Noukai flow that ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

if TYPE_CHECKING:
    from noukai_core import EndedRuns, RunsCursor
    from noukai_core.checks import Duration

_STATES = ("completed", "failed", "cancelled")

# The triggerer hands events on once a second. Until then, a cursor behind them would lose them in a crash.
_EVENT_SECONDS = 3.0


class NoukaiRunTrigger(BaseEventTrigger):
    """Fires an event for each run of a flow that ends, whatever has started the run.

    The payload of an event has `run_id`, `flow_id`, `state` and, if the server tells them, `trigger`,
    `created_at`, `started_at` and `completed_at`. The id of a job's run is that of the job.

    From Airflow 3.3 on, the trigger stores how far it has come with the asset that it watches. After a
    restart it continues from there: no run is missed. If the triggerer stops within three seconds after an
    event, the event may come twice, with the same `run_id`. Before 3.3, Airflow has no such store: runs that
    end while no triggerer runs are missed.

    Args:
        flow_id: The flow, by the id that Noukai gave it: `flowId` in the response to a submission.
        noukai_conn_id: The Airflow connection.
        states: Which ends fire an event: some of `completed`, `failed` and `cancelled`.
        poll_interval: The pause between two reads, in seconds or as a timedelta. The server lists the newest
            hundred runs of each state: choose a pause in which fewer begin.

    Raises:
        ValueError: An argument is wrong, such as the flow's path in place of its id.
    """

    def __init__(
        self,
        flow_id: str,
        noukai_conn_id: str = "noukai_default",
        states: Collection[str] = _STATES,
        poll_interval: Duration = 30.0,
    ) -> None:
        from noukai_core.checks import check_duration, check_flow_id

        super().__init__()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        if not states or isinstance(states, str) or not set(states) <= set(_STATES):
            raise ValueError(f"states is {states!r}, but must be some of {', '.join(_STATES)}")
        self.flow_id = check_flow_id(flow_id)
        self.noukai_conn_id = noukai_conn_id
        self.states = sorted(set(states))
        self.poll_interval = check_duration(poll_interval, "poll_interval")
        self._failures = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to recreate this trigger."""
        return (
            "noukai_airflow.triggers.runs.NoukaiRunTrigger",
            {
                "flow_id": self.flow_id,
                "noukai_conn_id": self.noukai_conn_id,
                "states": self.states,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each run that ends. No error ends this, as nothing would start it again."""
        cursor = await self._stored_cursor()
        while True:
            pause = self.poll_interval
            seen = await self._read(cursor)
            if seen is not None:
                fired = [run for run in seen.runs if run.state in self.states]
                for ended in fired:
                    yield TriggerEvent(ended.as_payload())  # type: ignore[no-untyped-call]
                if fired:
                    await asyncio.sleep(_EVENT_SECONDS)
                    pause = max(pause - _EVENT_SECONDS, 0.0)
                if seen.cursor != cursor:
                    cursor = seen.cursor
                    await self._store_cursor(cursor)
            await asyncio.sleep(pause)

    async def _read(self, cursor: RunsCursor | None) -> EndedRuns | None:
        """Read which runs have ended; `None` after an error, which the next read may not meet."""
        from noukai_airflow.hooks.noukai import NoukaiHook

        try:
            async with NoukaiHook(self.noukai_conn_id).async_client() as client:
                seen = await client.ended_runs(self.flow_id, cursor)
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                self.log.warning("Noukai runs of flow %s: not read (retrying): %s", self.flow_id, error)
            return None
        if self._failures:
            self.log.info(
                "Noukai runs of flow %s: read again after %d failures", self.flow_id, self._failures
            )
            self._failures = 0
        if not seen.complete:
            self.log.warning(
                "Noukai runs of flow %s: some may be missed (more than 100 of a state between two reads)",
                self.flow_id,
            )
        return seen

    @property
    def _key(self) -> str:
        """The key of the cursor, which the watchers of one asset do not share."""
        return f"{self._shared_key}/{self.noukai_conn_id}/{','.join(self.states)}"

    @property
    def _shared_key(self) -> str:
        """The key under which the watchers of one asset and flow once shared a cursor."""
        return f"noukai-runs-{self.flow_id}"

    async def _stored_cursor(self) -> RunsCursor | None:
        from noukai_core import RunsCursor

        store = getattr(self, "asset_state_store", None)
        if store is None:
            self.log.warning(
                "Noukai runs of flow %s: cursor not stored (this Airflow has no store for it)", self.flow_id
            )
            return None
        while True:
            try:
                cursor = RunsCursor.from_json(await store.aget(self._key))
                if cursor is None:
                    # It is left there for the other watchers, each of which reads it once.
                    cursor = RunsCursor.from_json(await store.aget(self._shared_key))
                    if cursor is not None:
                        await store.aset(self._key, cursor.to_json())
                return cursor
            except ValueError as error:  # more than one asset
                self.log.warning("Noukai runs of flow %s: cursor not stored (%s)", self.flow_id, error)
                return None
            except Exception as error:
                self.log.warning("Noukai runs of flow %s: not read (retrying): %s", self.flow_id, error)
                await asyncio.sleep(self.poll_interval)

    async def _store_cursor(self, cursor: RunsCursor) -> None:
        store = getattr(self, "asset_state_store", None)
        if store is None:
            return
        try:
            await store.aset(self._key, cursor.to_json())
        except Exception as error:  # the next cursor contains this one
            self.log.warning("Noukai runs of flow %s: cursor not stored (%s)", self.flow_id, error)

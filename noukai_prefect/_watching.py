"""Events for runs of a Noukai flow that have ended, whatever started them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.events import Event, Resource
from prefect.events.clients import get_events_client

from noukai_core import FlowRun, RunsCursor
from noukai_prefect._run_context import RunContext
from noukai_prefect.credentials import NoukaiCredentials

_NAMESPACE = uuid.UUID("0c0e8f9a-6a39-4d0c-8a0b-2a5a3f6f9c11")


async def emit_ended_runs(
    credentials: NoukaiCredentials, flow_id: str, states: Collection[str], run: RunContext
) -> list[FlowRun]:
    """Emit an event for each run that ended since the last call, and return the runs.

    The cursor is stored after Prefect has accepted the events. The id of an event follows from its run, so an
    event that is emitted again after a crash can be recognised.
    """
    store = _CursorStore(credentials, flow_id, states, run)
    cursor = await store.read()
    async with credentials.get_client("async") as client:
        seen = await client.ended_runs(flow_id, cursor)
    if not seen.complete:
        run.logger().warning(
            "Noukai runs of flow %s: some may be missed (more than 100 of a state between two reads)",
            flow_id,
        )
    fired = [ended for ended in seen.runs if ended.state in states]
    if fired:
        async with get_events_client(checkpoint_every=1) as events:
            for ended in fired:
                await events.emit(_event(ended))
    if seen.cursor != cursor:
        await store.write(seen.cursor)
    return fired


def _event(ended: FlowRun) -> Event:
    return Event(
        id=uuid.uuid5(_NAMESPACE, f"{ended.flow_id}:{ended.id}"),
        event=f"noukai.run.{ended.state}",
        resource=Resource.model_validate(
            {
                "prefect.resource.id": f"noukai.run.{ended.id}",
                "prefect.resource.name": ended.id,
                "noukai.flow-id": ended.flow_id,
            }
        ),
        payload=dict(ended.as_payload()),
    )


class _CursorStore:
    """Keeps the cursor of a flow and some states as an artifact, which Prefect's web page does not show."""

    def __init__(
        self, credentials: NoukaiCredentials, flow_id: str, states: Collection[str], run: RunContext
    ) -> None:
        watched = json.dumps([credentials.api_url, flow_id, sorted(set(states))])
        self._key = f"noukai-runs-{hashlib.sha256(watched.encode()).hexdigest()[:16]}"
        self._flow_id = flow_id
        self._run = run
        self._artifact: uuid.UUID | None = None

    async def read(self) -> RunsCursor | None:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[self._key]))
        async with get_client() as client:
            found: list[Artifact] = await client.read_artifacts(artifact_filter=wanted, limit=1)
        if not found:
            return None
        self._artifact = found[0].id
        data: Any = found[0].data
        try:
            return RunsCursor.from_json(json.loads(data) if isinstance(data, str) else data)
        except ValueError:
            return None

    async def write(self, cursor: RunsCursor) -> None:
        data = json.dumps(cursor.to_json())
        async with get_client() as client:
            if self._artifact is not None:
                await client.update_artifact(self._artifact, ArtifactUpdate(data=data))
                return
            await client.create_artifact(
                ArtifactCreate(
                    key=self._key,
                    type="result",
                    description=f"The runs of the Noukai flow {self._flow_id} that are known",
                    data=data,
                    flow_run_id=self._run.flow_run_id,
                )
            )

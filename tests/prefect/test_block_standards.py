"""Prefect's own standards for blocks."""

from __future__ import annotations

import json

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from prefect.utilities.callables import parameter_schema

from noukai_prefect import NoukaiCredentials, NoukaiJob
from noukai_prefect.flows import noukai_job, noukai_jobs


@pytest.mark.parametrize("block", [NoukaiCredentials, NoukaiJob])
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Prefect shows its own picture, as Noukai has no published logo."""
        assert block._logo_url is None


@pytest.mark.parametrize(
    "schema",
    [
        NoukaiCredentials.model_json_schema(),
        NoukaiJob.model_json_schema(),
        parameter_schema(noukai_job).model_dump(),
        parameter_schema(noukai_jobs).model_dump(),
    ],
    ids=["credentials", "job", "flow of a job", "flow of many jobs"],
)
def test_plain_fields(schema: dict[str, object]) -> None:
    """No field of a form is a switch between a type and null."""
    assert '"anyOf"' not in json.dumps(schema, default=str)


def test_the_form_of_a_run() -> None:
    """The form asks for the flow and its message first, and the credentials are the default ones."""
    parameters = parameter_schema(noukai_job).model_dump()
    assert parameters["required"] == ["noukai_flow"]
    assert [*parameters["properties"]][:2] == ["noukai_flow", "message"]

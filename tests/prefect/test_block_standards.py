"""Prefect's own standards for blocks."""

from __future__ import annotations

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from noukai_prefect import NoukaiCredentials, NoukaiJob


@pytest.mark.parametrize("block", [NoukaiCredentials, NoukaiJob])
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Prefect shows its own picture, as Noukai has no published logo."""
        assert block._logo_url is None

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.conformance.discovery import DiscoverySuite
from wool.runtime.discovery.lan import LanDiscovery


@pytest.mark.filterwarnings("ignore::wool.LoopbackAdvertisementWarning")
class TestLanDiscovery(DiscoverySuite):
    @pytest.fixture
    def discovery(self) -> LanDiscovery:
        return LanDiscovery(f"conformance-{uuid4()}")

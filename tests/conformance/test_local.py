from __future__ import annotations

from uuid import uuid4

import pytest

from tests.conformance.discovery import DiscoverySuite
from wool.runtime.discovery.local import LocalDiscovery


class TestLocalDiscovery(DiscoverySuite):
    @pytest.fixture
    def discovery(self) -> LocalDiscovery:
        return LocalDiscovery(f"conformance-{uuid4()}")

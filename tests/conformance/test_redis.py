from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.conformance.discovery import DiscoverySuite
from tests.redis_server import RedisServer, needs_redis
from wool.runtime.discovery.redis import RedisDiscovery

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@needs_redis
class TestRedisDiscovery(DiscoverySuite):
    @pytest.fixture
    def discovery(self, server: RedisServer) -> RedisDiscovery:
        return RedisDiscovery(f"conformance-{uuid4()}", url=server.url)

"""The examples of docs/extending.md, and wool's own workers, against the suites."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.conformance.discovery import DiscoverySuite
from tests.conformance.loadbalancer import LoadBalancerConformance
from tests.conformance.worker import WorkerConformance
from tests.programs import ROOT, blocks
from wool import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from wool import DiscoveryLike, LoadBalancerLike, WorkerLike

BLOCKS = [block.text for block in blocks(ROOT / "docs" / "extending.md")]


def load(number: int) -> Any:
    """A block as a module, which can be imported as pickle does."""
    module = ModuleType(f"extending_{number}")
    sys.modules[module.__name__] = module
    exec(compile(BLOCKS[number], f"docs/extending.md, block {number}", "exec"), module.__dict__)
    return module


discovery_example, balancer_example, worker_example = map(load, range(3))


def test_page_has_no_other_code() -> None:
    assert len(BLOCKS) == 3


class TestDiscoveryExample(DiscoverySuite):
    @pytest.fixture
    def discovery(self) -> DiscoveryLike:
        made: DiscoveryLike = discovery_example.NoticeboardDiscovery(f"conformance-{uuid4()}")
        return made


class TestLoadBalancerExample(LoadBalancerConformance):
    def make(self) -> LoadBalancerLike:
        made: LoadBalancerLike = balancer_example.Failover()
        return made


class TestWorkerExample(WorkerConformance):
    def factory(self) -> Callable[..., WorkerLike]:
        made: Callable[..., WorkerLike] = worker_example.WarmWorker
        return made


class TestLocalWorker(WorkerConformance):
    def factory(self) -> Callable[..., WorkerLike]:
        return LocalWorker

"""The public names."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import logging
import re
from contextvars import ContextVar

import pytest

import wool

CONTRACT = [
    "RpcError",
    "TransientRpcError",
    "UnexpectedResponse",
    "WorkerConnection",
    "RuntimeContext",
    "LoadBalancerContextLike",
    "LoadBalancerLike",
    "NoWorkersAvailable",
    "RoundRobinLoadBalancer",
    "Serializer",
    "Task",
    "TaskException",
    "current_task",
    "routine",
    "LocalWorker",
    "Worker",
    "WorkerCredentials",
    "WorkerFactory",
    "WorkerLike",
    "WorkerPool",
    "WorkerProxy",
    "WorkerService",
    "Discovery",
    "DiscoveryEvent",
    "DiscoveryEventType",
    "DiscoveryLike",
    "DiscoveryPublisherLike",
    "DiscoverySubscriberLike",
    "LanDiscovery",
    "LocalDiscovery",
    "PredicateFunction",
    "WorkerMetadata",
    "Factory",
]
"""What the published package has, and in its order."""

OURS = [
    "LeastLoadedLoadBalancer",
    "MapProgress",
    "map",
    "BackpressureContext",
    "BackpressureLike",
    "WorkerCredentialsProvider",
    "RunningTask",
    "WorkerStatus",
    "Event",
    "EventKind",
    "Events",
    "events",
    "DnsDiscovery",
    "RedisDiscovery",
    "AdvertiseHostError",
    "DispatchTimeout",
    "HandshakeError",
    "PayloadTooLarge",
    "WoolError",
    "WorkerFull",
    "WorkerLost",
    "WorkerUnresponsive",
    "IneffectiveIdentityWarning",
    "IneffectivePeersWarning",
    "LoopbackAdvertisementWarning",
    "WoolWarning",
    "__version__",
]

PATHS = [
    "wool.protocol.__version__",
    "wool.protocol.WorkerStub",
    "wool.protocol.add_to_server",
    "wool.runtime.context.RuntimeContext",
    "wool.runtime.context.dispatch_timeout",
    "wool.runtime.typing.Undefined",
    "wool.runtime.typing.Factory",
    "wool.runtime.resourcepool.ResourcePool",
    "wool.runtime.resourcepool.Resource",
    "wool.runtime.routine.task.Task",
    "wool.runtime.routine.task.TaskException",
    "wool.runtime.routine.task.Serializer",
    "wool.runtime.routine.task.WorkerProxyLike",
    "wool.runtime.routine.task.current_task",
    "wool.runtime.routine.task.do_dispatch",
    "wool.runtime.routine.wrapper.routine",
    "wool.runtime.loadbalancer.base.LoadBalancerContext",
    "wool.runtime.loadbalancer.base.LoadBalancerContextLike",
    "wool.runtime.loadbalancer.base.LoadBalancerLike",
    "wool.runtime.loadbalancer.base.NoWorkersAvailable",
    "wool.runtime.loadbalancer.roundrobin.RoundRobinLoadBalancer",
    "wool.runtime.discovery.base.Discovery",
    "wool.runtime.discovery.base.DiscoveryEvent",
    "wool.runtime.discovery.base.DiscoveryEventType",
    "wool.runtime.discovery.base.DiscoveryLike",
    "wool.runtime.discovery.base.DiscoveryPublisherLike",
    "wool.runtime.discovery.base.DiscoverySubscriberLike",
    "wool.runtime.discovery.lan.LanDiscovery",
    "wool.runtime.discovery.local.LocalDiscovery",
    "wool.runtime.worker.pool.WorkerPool",
    "wool.runtime.worker.pool.WorkerProxy",
    "wool.runtime.worker.pool.LocalWorker",
    "wool.runtime.worker.pool.LocalDiscovery",
    "wool.runtime.worker.pool._resolve_size",
    "wool.runtime.worker.proxy.WorkerProxy",
    "wool.runtime.worker.proxy.parse_version",
    "wool.runtime.worker.proxy.is_version_compatible",
    "wool.runtime.worker.proxy.ReducibleAsyncIterator",
    "wool.runtime.worker.proxy.LoadBalancerLike",
    "wool.runtime.worker.proxy.RoundRobinLoadBalancer",
    "wool.runtime.worker.process.WorkerProcess",
    "wool.runtime.worker.local.LocalWorker",
    "wool.runtime.worker.local.WorkerProcess",
    "wool.runtime.worker.connection.WorkerConnection",
    "wool.runtime.worker.connection.RpcError",
    "wool.runtime.worker.connection.TransientRpcError",
    "wool.runtime.worker.connection.UnexpectedResponse",
    "wool.runtime.worker.service.WorkerService",
    "wool.runtime.worker.interceptor.VersionInterceptor",
    "wool.runtime.worker.auth.WorkerCredentials",
    "wool.runtime.worker.auth.CredentialContext",
    "wool.runtime.worker.base.ChannelOptions",
    "wool.runtime.worker.base.WorkerOptions",
    "wool.runtime.worker.base.Worker",
    "wool.runtime.worker.base.WorkerFactory",
    "wool.runtime.worker.base.WorkerLike",
    "wool.runtime.worker.metadata.WorkerMetadata",
]


def test_public_names_are_those_of_the_contract_and_ours() -> None:
    assert [name for name in wool.__all__ if name not in OURS] == CONTRACT
    assert [name for name in wool.__all__ if name in OURS] == OURS
    assert all(hasattr(wool, name) for name in wool.__all__)


def test_public_names_are_listed_and_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from wool import *", names)
    del names["__builtins__"]
    assert names == {name: getattr(wool, name) for name in wool.__all__}
    assert names.keys() <= set(dir(wool))


def test_public_names_come_from_where_type_checkers_look() -> None:
    [block] = [
        node
        for node in ast.parse(inspect.getsource(wool)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.name: f"{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"wool.runtime.{home}" for home, names in wool._HOMES.items() for name in names}
    assert {name: seen[name] for name in homes} == homes
    assert {*homes, "__version__"} == set(wool.__all__)


def test_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'wool' has no attribute 'nothing'"):
        wool.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_documented() -> None:
    aliases = {"DiscoveryEventType", "EventKind", "PredicateFunction", "Factory", "__version__"}
    undocumented = [
        name for name in wool.__all__ if name not in aliases and not getattr(wool, name).__doc__
    ]
    assert undocumented == []


@pytest.mark.parametrize("path", PATHS)
def test_module_path_of_the_contract(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_ambient_names() -> None:
    for name in ("__proxy__", "__proxy_pool__", "__worker_service__"):
        variable = getattr(wool, name)
        assert isinstance(variable, ContextVar)
        assert variable.get() is None
    assert wool.__worker_metadata__ is None
    assert wool.__worker_uds_address__ is None


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", wool.__version__)
    assert wool.__version__ == importlib.metadata.version("wool")


def test_logger_is_silent_by_default() -> None:
    handlers = logging.getLogger("wool").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)

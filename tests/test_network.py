"""Pools and workers on several hosts of a network that is made for the test."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import trustme

from tests.network import Network, Program, programs, why_not

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

REASON = why_not()

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.slow,
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"namespace": f"test-{uuid4()}"}


def served(program: Program) -> str:
    return program.host.name


async def test_pools_find_workers_of_other_hosts(
    network: Network, stack: AsyncExitStack, settings: dict[str, Any]
) -> None:
    hosts = [network.add() for _ in range(3)]
    serving = [Program(host, {"size": 1, **settings}) for host in hosts[:2]]
    first, second, caller = await programs(stack, *serving, Program(hosts[2], settings))
    addresses = await caller.ask("workers", 2)
    assert [address.rpartition(":")[0] for address in addresses] == ["10.77.0.1", "10.77.0.2"]
    both = sorted([served(first), served(second)])
    assert await caller.ask("where", 6) == both
    assert await caller.ask("nested", 2) == both


async def test_lease_of_two_over_four_hosts(
    network: Network, stack: AsyncExitStack, settings: dict[str, Any]
) -> None:
    hosts = [network.add() for _ in range(5)]
    serving = [Program(host, {"size": 1, **settings}) for host in hosts[:4]]
    caller = Program(hosts[4], {"lease": 2, **settings})
    *_, caller = await programs(stack, *serving, caller)
    await caller.ask("workers", 2)
    assert len(await caller.ask("where", 12)) == 2
    assert len(await caller.ask("nested", 2)) == 2


async def test_host_that_disappears(
    network: Network, stack: AsyncExitStack, settings: dict[str, Any]
) -> None:
    """What it ran is lost, and said to be; the others take the next calls at once."""
    hosts = [network.add() for _ in range(3)]
    settings["keepalive_ms"] = 1_000
    serving = [Program(host, {"size": 1, **settings}) for host in hosts[:2]]
    gone, stays, caller = await programs(stack, *serving, Program(hosts[2], settings))
    await caller.ask("workers", 2)
    await caller.ask("hold", 4, 8)
    await gone.kill()
    assert await caller.ask("held") == sorted(["WorkerLost"] * 2 + [served(stays)] * 2)
    assert await caller.ask("where", 6) == [served(stays)]


async def test_cable_pulled_and_put_back(
    network: Network, stack: AsyncExitStack, settings: dict[str, Any]
) -> None:
    hosts = [network.add() for _ in range(3)]
    settings["keepalive_ms"] = 1_000
    serving = [Program(host, {"size": 1, **settings}) for host in hosts[:2]]
    pulled, stays, caller = await programs(stack, *serving, Program(hosts[2], settings))
    await caller.ask("workers", 2)
    await caller.ask("hold", 4, 8)
    pulled.host.pull_cable()
    assert await caller.ask("held") == sorted(["WorkerLost"] * 2 + [served(stays)] * 2)
    pulled.host.put_cable_back()
    await caller.ask("workers", 2)
    assert await caller.ask("where", 8) == sorted([served(pulled), served(stays)])


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def files(folder: Path, authority: trustme.CA, *names: str) -> list[str]:
    """Paths of a CA's, a key's and a certificate's files."""
    certificate = authority.issue_cert(*names)
    paths = [str(folder / f"{uuid4().hex}-{kind}.pem") for kind in ("ca", "key", "cert")]
    authority.cert_pem.write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    certificate.cert_chain_pems[0].write_to_path(paths[2])
    return paths


async def test_tls_across_hosts(
    network: Network,
    stack: AsyncExitStack,
    settings: dict[str, Any],
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    """Secure pools use secure workers alone, and the reverse, of those on the same network."""
    hosts = [network.add() for _ in range(4)]
    secure = [
        Program(host, {"size": 1, "tls": files(tmp_path, authority, host.address), **settings})
        for host in hosts[:2]
    ]
    plain = Program(hosts[2], {"size": 1, **settings})
    caller = Program(hosts[3], {"tls": files(tmp_path, authority, hosts[3].address), **settings})
    first, second, plain, caller = await programs(stack, *secure, plain, caller)
    await caller.ask("workers", 2)
    both = sorted([served(first), served(second)])
    assert await caller.ask("where", 6) == both
    assert await caller.ask("nested", 2) == both
    assert await plain.ask("where", 4) == [served(plain)]


async def test_certificate_for_another_address_is_refused(
    network: Network,
    stack: AsyncExitStack,
    settings: dict[str, Any],
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    hosts = [network.add() for _ in range(2)]
    wrong = files(tmp_path, authority, "10.77.0.99")
    serving = Program(hosts[0], {"size": 1, "tls": wrong, **settings})
    right = files(tmp_path, authority, hosts[1].address)
    _, caller = await programs(stack, serving, Program(hosts[1], {"tls": right, **settings}))
    assert "10.77.0.1" in await caller.ask("refused")

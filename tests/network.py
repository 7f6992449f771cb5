"""A small network of hosts on this machine: network namespaces and a bridge (Linux, root)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.programs import ROOT

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ANSWER = 60.0
"""Seconds that a program may take to answer."""


def why_not() -> str | None:
    """The reason why there can be no such network here; None if there can."""
    if shutil.which("ip") is None:
        return "there is no `ip` here (Debian's iproute2)"
    if os.geteuid() != 0:
        return "network namespaces are for root"
    name = f"wool-try-{uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    bridge = subprocess.run(
        ["ip", "-n", name, "link", "add", "br0", "type", "bridge"], capture_output=True, text=True
    )
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"there are no bridges here: {bridge.stderr.strip()}" if bridge.returncode else None


class Host:
    """A network namespace with one interface, `address`, on the network's bridge."""

    def __init__(self, switch: str, number: int) -> None:
        self.name = f"{switch}-{number}"
        self.address = f"10.77.0.{number}"
        self._switch = switch
        self._port = f"port{number}"
        _ip("netns", "add", self.name)
        _ip("-n", switch, "link", "add", self._port, "type", "veth",
            "peer", "name", "eth0", "netns", self.name)  # fmt: skip
        _ip("-n", switch, "link", "set", self._port, "master", "br0", "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "addr", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def pull_cable(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def put_cable_back(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def pids(self) -> list[int]:
        return list(map(int, _ip("netns", "pids", self.name).split()))

    def remove(self) -> None:
        _ip("netns", "del", self.name)


class Network:
    """Hosts that reach each other, and nobody else. To be entered."""

    def __init__(self) -> None:
        self._switch = f"wool-{uuid4().hex[:6]}"
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for host in self.hosts:
            host.remove()
        _ip("netns", "del", self._switch)

    def add(self) -> Host:
        host = Host(self._switch, len(self.hosts) + 1)
        self.hosts.append(host)
        return host


class Program:
    """tests/network_host.py, run on a host: it is asked things, one after the other."""

    def __init__(self, host: Host, settings: dict[str, Any]) -> None:
        self.host = host
        self._settings = {"host": host.name, "address": host.address, **settings}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", self.host.name,
            sys.executable, "-m", "tests.network_host", json.dumps(self._settings),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert await self._answer() == "ready"
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.returncode is None:
            self._process.stdin.close()
            try:
                async with asyncio.timeout(ANSWER):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()
                raise

    async def kill(self) -> None:
        """As if the host had lost its power: everything on it ends without a word."""
        assert self._process is not None
        self.host.pull_cable()
        for pid in self.host.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        await self._process.wait()

    async def ask(self, what: str, *arguments: Any) -> Any:
        self.tell(what, *arguments)
        return await self._answer()

    def tell(self, what: str, *arguments: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")

    async def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER):
            line = await self._process.stdout.readline()
        if not line:
            pytest.fail(f"the program on {self.host.name} has ended")
        return json.loads(line)


async def programs(stack: AsyncExitStack, *pending: Program) -> list[Program]:
    """Start them at the same time."""
    return list(await asyncio.gather(*map(stack.enter_async_context, pending)))


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

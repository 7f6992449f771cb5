"""The floor: a bare grpc.aio echo in another process, over one open stream on a unix socket.

One frame is one message, of the size that a no-op's is with wool; payloads go up and come back in
messages of wool's chunk size.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING, Any

import grpc.aio

from benchmarks.drivers.base import Driver
from benchmarks.drivers.memory import resident

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = 70
"""Bytes of the message that asks for a no-op."""

RESPONSE = 12
"""Bytes of the message with its result."""

CHUNK = 256 * 1024

METHOD = "/floor/echo"

IDLE = "import grpc.aio, sys; print(flush=True); sys.stdin.read()"


class Floor(Driver):
    packages = ("grpcio",)
    imports = "import grpc.aio"

    async def open(self, workers: int, held: int = 1) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="floor-")
        address = f"unix:{self._directory.name}/s"
        code = f"from benchmarks.drivers.floor import run_server; run_server({address!r})"
        self._server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=PIPE, stdout=PIPE
        )
        assert self._server.stdout is not None
        await self._server.stdout.readline()
        self._channel = grpc.aio.insecure_channel(address)
        self._call: Any = self._channel.stream_stream(METHOD)()
        await self._call.initial_metadata()
        self._turn = asyncio.Lock()
        self._request = bytes(REQUEST)

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()
        self._server.kill()
        await self._server.wait()
        self._directory.cleanup()

    async def noop(self) -> None:
        async with self._turn:
            await self._call.write(self._request)
            await self._call.read()

    async def window(self, callers: int, calls: int) -> None:
        room = asyncio.Semaphore(callers)

        async def read() -> None:
            for _ in range(calls):
                await self._call.read()
                room.release()

        reading = asyncio.ensure_future(read())
        for _ in range(calls):
            await room.acquire()
            await self._call.write(self._request)
        await reading

    async def stream(self, items: int) -> AsyncIterator[int]:
        for i in range(items):
            await self.noop()
            yield i

    async def echo(self, value: Any) -> Any:
        view = memoryview(value).cast("B")
        result = bytearray(len(view))

        async def read() -> None:
            end = 0
            while end < len(result):
                message = await self._call.read()
                result[end : end + len(message)] = message
                end += len(message)

        async with self._turn:
            reading = asyncio.ensure_future(read())
            for start in range(0, len(view), CHUNK):
                await self._call.write(bytes(view[start : start + CHUNK]))
            await reading
        return memoryview(result).cast("d" if hasattr(value, "dtype") else "B")

    async def pid(self) -> int:
        return self._server.pid

    async def idle(self) -> int:
        """Of an interpreter that has imported gRPC."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IDLE, stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        size = resident(process.pid)
        process.kill()
        await process.wait()
        return size


async def _echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    await context.send_initial_metadata(())
    async for request in requests:
        yield request if len(request) > REQUEST else request[:RESPONSE]


async def _serve(address: str) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"echo": grpc.stream_stream_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    server.add_insecure_port(address)
    await server.start()
    os.write(1, b"\n")
    await server.wait_for_termination()


def run_server(address: str) -> None:
    asyncio.run(_serve(address))

"""What a worker's interpreter runs: `python -m wool.runtime.worker.main CONTROL REPORT`.

CONTROL and REPORT are descriptors of pipes. The worker reads its configuration from the first, and
then for how many seconds to drain, when it is to stop. When that pipe is closed, its parent is
gone, and it stops at once. It writes its metadata, or why it has none, to the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

import grpc.aio

import wool
import wool.runtime.worker.proxy  # Which comes with every task.
from wool import protocol
from wool.runtime.discovery.descriptors import withdraw
from wool.runtime.worker import health
from wool.runtime.worker.configuration import STOP
from wool.runtime.worker.guest import Guest
from wool.runtime.worker.interceptor import VersionInterceptor
from wool.runtime.worker.metadata import WorkerMetadata
from wool.runtime.worker.service import WorkerService
from wool.runtime.worker.transport import obstacle, overlook_closed_loops, server_arguments

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from wool.runtime.worker.configuration import Configuration

STOP_SERVER = 1.0
"""Seconds for RPCs under way, such as the one that asked to stop."""

END = 10
"""Seconds for what follows the routines' grace period. SIGALRM ends a worker that takes longer."""

LONGEST_TIMER = 1e9
"""Seconds, as a grace period may be without end."""


def main() -> None:
    control, report = int(sys.argv[1]), int(sys.argv[2])
    del sys.argv[1:]
    # Unless routines set up logging, warnings go to standard error, as a program's own would.
    logging.getLogger("wool").handlers.clear()
    # Until it serves, and when it does no longer: by default it would end the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Whatever the parent does with it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    parent = os.getppid()
    code = 1
    try:
        configuration = _configure(control)
        initialize = _loaded(configuration.initializer)
        if initialize is not None:
            initialize()
        guest = Guest()
        with asyncio.Runner(loop_factory=lambda: guest.loop):
            guest.run(serve(configuration, control, report, guest))
        code = 0
    except BaseException as exc:
        _report(report, b"!" + f"{type(exc).__name__}: {exc}".encode())
    finally:
        _bound_end()
        withdraw()
        if os.getppid() != parent:
            _sweep()
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _bound_end() -> None:
    """Have the system see to it that this ends, which a lock held by a routine's thread may stop.

    Such is that of a logging handler whose thread writes to a pipe that nobody reads.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(END)


def _end_after_parent(control: int, seconds: float) -> None:
    """Wait for the parent's end, and have this end so much later, whatever its loops are at."""
    closed = select.poll()
    closed.register(control, 0)  # That is told in any case.
    closed.poll()
    if not signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _sweep() -> None:
    """Remove what the parent, which has died, has announced."""
    with contextlib.suppress(ImportError, OSError):
        from wool.runtime.discovery.records import Directory

        Directory("").sweep()


def _configure(control: int) -> Configuration:
    with os.fdopen(control, "rb", closefd=False, buffering=0) as pipe:
        size = int.from_bytes(_read(pipe, 8), "big")
        surroundings, configuration = pickle.loads(_read(pipe, size))
    sys.path[:], python_path = pickle.loads(surroundings)
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path
    loaded: Configuration = pickle.loads(configuration)
    return loaded


def _loaded(pickled: bytes | None) -> Any:
    return None if pickled is None else pickle.loads(pickled)


def _read(pipe: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = pipe.read(size - len(data))
        if not piece:
            raise EOFError("the parent has gone")
        data += piece
    return data


def _report(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(OSError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(content)


async def serve(configuration: Configuration, control: int, report: int, guest: Guest) -> None:
    """Serve as configured until told to stop, on the loop of `guest`."""
    patience = min(configuration.shutdown_grace_period, LONGEST_TIMER) + END
    threading.Thread(
        target=_end_after_parent, args=(control, patience), name="wool parent watch", daemon=True
    ).start()
    service = WorkerService(
        options=configuration.options.channel,
        proxy_ttl=configuration.proxy_pool_ttl,
        grace=configuration.shutdown_grace_period,
        credentials=configuration.credentials,
        blocking_threshold=configuration.blocking_threshold,
        max_concurrent_tasks=configuration.max_concurrent_tasks,
        backpressure=_loaded(configuration.backpressure),
        loop_factory=_loaded(configuration.loop_factory),
    )
    server = grpc.aio.server(
        interceptors=[VersionInterceptor()], options=server_arguments(configuration.options)
    )
    protocol.add_to_server(service, server)
    health.add_to_server(health.Health(service.stopping, service.stopped), server)
    asyncio.get_running_loop().set_exception_handler(overlook_closed_loops)
    try:
        metadata = _bind(server, configuration)
        wool.__worker_metadata__ = metadata
        wool.__worker_service__.set(service)
        await server.start()
        service.start(guest)
        with _Stopper(service, control):
            _report(report, b"=" + metadata.to_protobuf().SerializeToString())
            await service.stopped.wait()
            _bound_end()
            await server.stop(STOP_SERVER)
    finally:
        if configuration.directory is not None:
            _remove(configuration.directory)


def _remove(directory: str) -> None:
    for remove, path in ((os.unlink, f"{directory}/s"), (os.rmdir, directory)):
        with contextlib.suppress(OSError):
            remove(path)


def _bind(server: grpc.aio.Server, configuration: Configuration) -> WorkerMetadata:
    credentials = configuration.credentials
    if configuration.directory is not None:
        address = f"unix:{configuration.directory}/s"
        wool.__worker_uds_address__ = address
    else:
        address = _join(configuration.host, configuration.port)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials.server_credentials())
    except RuntimeError as exc:
        if configuration.directory is not None:
            raise
        reason = obstacle(configuration.host, configuration.port) or "no reason is known"
        raise RuntimeError(f"Failed to bind to address {address}: {reason}") from exc
    return WorkerMetadata(
        uid=configuration.uid,
        address=address if configuration.directory else _join(configuration.host, port),
        pid=os.getpid(),
        version=protocol.__version__,
        tags=configuration.tags,
        extra=configuration.extra,
        secure=credentials is not None,
        options=configuration.options.channel,
        identity=configuration.identity,
    )


def _join(host: str | None, port: int) -> str:
    return f"[{host}]:{port}" if host and ":" in host else f"{host}:{port}"


class _Stopper:
    """Stops the service: as its parent says, drained on SIGINT, else at once.

    On SIGUSR1 it writes what runs, and where, to standard error.
    """

    def __init__(self, service: WorkerService, control: int) -> None:
        self._service = service
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self._stop, 0)
        self._loop.add_signal_handler(signal.SIGINT, self._stop, -1)
        self._loop.add_signal_handler(signal.SIGUSR1, self._show)
        self._loop.add_reader(self._control, self._told)

    def __exit__(self, *exc_info: object) -> None:
        self._loop.remove_reader(self._control)
        self._loop.remove_signal_handler(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._loop.remove_signal_handler(signal.SIGINT)
        self._loop.remove_signal_handler(signal.SIGTERM)

    def _show(self) -> None:
        tasks = self._service.running_tasks()
        lines = (f"{task.tag}, for {task.seconds:.1f} s:\n{task.stack}" for task in tasks)
        if sys.stderr is not None:
            sys.stderr.write(f"wool worker {os.getpid()}: {len(tasks)} run\n{''.join(lines)}")
            sys.stderr.flush()

    def _told(self) -> None:
        request = os.read(self._control, STOP.size)
        if len(request) == STOP.size:
            self._stop(*STOP.unpack(request))
        else:
            self._loop.remove_reader(self._control)
            self._stop(0)

    def _stop(self, timeout: float) -> None:
        self._keep(self._service.stop(protocol.StopRequest(timeout=timeout)))

    def _keep(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


if __name__ == "__main__":
    main()

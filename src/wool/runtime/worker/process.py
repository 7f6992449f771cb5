"""The parent's side of a worker process: start an interpreter, supervise it, and reap it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from wool import protocol
from wool.runtime.rundir import runtime_directory
from wool.runtime.serializer import to_bytes
from wool.runtime.worker import fate
from wool.runtime.worker.base import WorkerOptions
from wool.runtime.worker.configuration import STOP, Configuration
from wool.runtime.worker.metadata import WorkerMetadata, check_identity, encode_extra

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from uuid import UUID

    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.backpressure import BackpressureLike

logger = logging.getLogger("wool.process")

START_TIMEOUT = 60.0
"""Seconds for a worker to report that it serves."""

TERMINATE_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL."""

LONGEST_DIRECTORY = 90
"""Characters that leave room for a socket's name; a path of 104 is too long on some systems."""


class WorkerProcess:
    """A worker in an interpreter of its own.

    With neither `host` nor `port` it listens on a unix socket that only this user can reach.
    `shutdown_grace_period` is how many seconds its routines may take to clean up when they are
    cancelled by a stop, `proxy_pool_ttl` how many an unused proxy is kept there,
    `blocking_threshold` how many a routine may block the loop before that is logged (None: any).
    `initializer` is called there before it serves, `loop_factory` makes the routines' loop.

    Raises `ValueError` for a blank host, a port outside 0..65535, a duration or a number of tasks
    that isn't positive, or an identity that is blank or comes without credentials, `TypeError` if
    `extra` holds what JSON can't carry or one of the hooks can't be called, and whatever pickling
    these raises.
    """

    def __init__(
        self,
        *,
        uid: UUID,
        tags: frozenset[str] = frozenset(),
        extra: dict[str, Any] | None = None,
        host: str | None = None,
        port: int | None = None,
        shutdown_grace_period: float = 60.0,
        proxy_pool_ttl: float = 60.0,
        credentials: Credentials | None = None,
        options: WorkerOptions | None = None,
        identity: str | None = None,
        max_concurrent_tasks: int | None = None,
        backpressure: BackpressureLike | None = None,
        blocking_threshold: float | None = 1.0,
        initializer: Callable[[], object] | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        _check_place(host, port)
        _check_durations(shutdown_grace_period, proxy_pool_ttl, blocking_threshold)
        check_credentials(identity, credentials)
        _check_limits(max_concurrent_tasks, backpressure)
        if extra:
            encode_extra(extra)
        self._uid = uid
        self._tags = tags
        self._extra = extra or {}
        self._host = host if host is not None or port is None else "127.0.0.1"
        self._port = port or 0
        self._grace = shutdown_grace_period
        self._ttl = proxy_pool_ttl
        self._credentials = credentials
        self._options = options or WorkerOptions()
        self._identity = identity
        self._most = max_concurrent_tasks
        self._blocking_threshold = blocking_threshold
        self._backpressure = _dump("the backpressure hook", backpressure)
        self._initializer = _dump("initializer", initializer)
        self._loop_factory = _dump("loop_factory", loop_factory)
        self._directory: str | None = None
        self._lock: int | None = None
        self._control: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exited: asyncio.Task[int] | None = None
        self.metadata: WorkerMetadata | None = None

    @property
    def address(self) -> str | None:
        return self.metadata.address if self.metadata else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, timeout: float | None = None) -> None:
        """Start it; returns when it serves.

        Raises `ValueError` if the timeout (default: 60 s) isn't positive, and `RuntimeError` if
        the process ends or isn't ready by then.
        """
        timeout = START_TIMEOUT if timeout is None else timeout
        if timeout <= 0:
            raise ValueError("Timeout must be positive")
        try:
            async with asyncio.timeout(timeout):
                report = await self._launch()
            self.metadata = self._read_report(report)
        except BaseException as exc:
            try:
                how = await self._describe_end() if isinstance(exc, _StartError) else ""
            finally:
                await self.reap(0)
            if isinstance(exc, TimeoutError):
                raise RuntimeError(
                    f"Worker process failed to start within {timeout} seconds"
                ) from exc
            if isinstance(exc, _StartError):
                hint = "" if exc.said else "; its standard error may say why"
                raise RuntimeError(f"Worker process failed to start - {exc}{how}{hint}") from exc
            raise

    async def _launch(self) -> bytes:
        if not sys.executable:
            raise RuntimeError("Workers need a Python interpreter, and sys.executable names none")
        inherited = []
        if self._host is None:
            self._directory, self._lock = _make_directory()
            inherited.append(self._lock)
        control_read, self._control = os.pipe()
        report_read, report_write = os.pipe()
        report = os.fdopen(report_read, "rb", buffering=0)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_interpreter_flags(),
                "-P",
                "-m",
                "wool.runtime.worker.main",
                str(control_read),
                str(report_write),
                pass_fds=(control_read, report_write, *inherited),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            report.close()
            raise
        finally:
            os.close(control_read)
            os.close(report_write)
        _running.add(self)  # Not before: uvloop runs what is to run in forks when it starts one.
        self._exited = asyncio.create_task(self._process.wait(), name="wool worker process")
        fate.register(self._uid, self._exited)
        with report:
            with contextlib.suppress(BrokenPipeError):
                await asyncio.to_thread(_write_all, self._control, self._settings())
            return await _read_all(report)

    def _settings(self) -> bytes:
        configuration = Configuration(
            uid=self._uid,
            tags=self._tags,
            extra=self._extra,
            host=self._host,
            port=self._port,
            directory=self._directory,
            shutdown_grace_period=self._grace,
            proxy_pool_ttl=self._ttl,
            credentials=self._credentials,
            options=self._options,
            identity=self._identity,
            blocking_threshold=self._blocking_threshold,
            max_concurrent_tasks=self._most,
            backpressure=self._backpressure,
            initializer=self._initializer,
            loop_factory=self._loop_factory,
        )
        surroundings = pickle.dumps((sys.path, os.environ.get("PYTHONPATH")))
        data = pickle.dumps((surroundings, pickle.dumps(configuration)))
        return len(data).to_bytes(8, "big") + data

    def _read_report(self, report: bytes) -> WorkerMetadata:
        if not report:
            raise _StartError("no metadata", said=False)
        kind, content = report[:1], report[1:]
        if kind == b"!":
            raise _StartError(content.decode(), said=True)
        return WorkerMetadata.from_protobuf(protocol.WorkerMetadata.FromString(content))

    async def _describe_end(self) -> str:
        if self._exited is None or self._process is None:
            return ""
        if self._process.returncode is None:
            await asyncio.wait([self._exited], timeout=0.5)
        code = self._process.returncode
        return f" ({fate.recall(self._uid, code)})" if code is not None else ""

    async def wait(self) -> str:
        """Return when the process has ended; says how, in words."""
        if self._exited is None:
            raise RuntimeError("Worker process has not been started")
        return fate.recall(self._uid, await asyncio.shield(self._exited))

    def tell_to_stop(self, timeout: float) -> None:
        """Have it drain for `timeout` seconds (0: not at all, negative: without limit) and end."""
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, STOP.pack(timeout))

    async def reap(self, timeout: float | None) -> None:
        """See the process end: wait `timeout` seconds (None: any time), then SIGTERM, then SIGKILL.

        A cancellation, or an interrupt, shortens that, and is raised when the process is gone.
        """
        try:
            if self._process is not None and self.alive:
                await self._await_end(self._process, timeout)
        finally:
            _running.discard(self)
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        descriptors = self._control, self._lock
        self._control = self._lock = None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)

    async def _await_end(self, process: asyncio.subprocess.Process, timeout: float | None) -> None:
        interruption: BaseException | None = None
        steps = iter([(timeout, signal.SIGTERM), (TERMINATE_TIMEOUT, signal.SIGKILL)])
        while process.returncode is None:
            # Not `_exited`, and anew: the end of `asyncio.run` cancels tasks before this is over.
            exited = asyncio.create_task(process.wait(), name="wool worker end")
            patience, signum = next(steps, (None, None))
            try:
                await asyncio.wait([exited], timeout=patience)
            except BaseException as exc:
                interruption = exc
            finally:
                exited.cancel()
            alive = process.returncode is None
            if patience and interruption is None and alive:
                logger.warning("Worker process %s has not ended in %s s", process.pid, patience)
            if signum is not None and alive:
                # Not `process.send_signal`, which may take the exit status from asyncio.
                if signum is signal.SIGKILL:
                    fate.expect_kill(self._uid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)
        if interruption is not None:
            raise interruption


_running: set[WorkerProcess] = set()
"""Those that have been started and not been reaped."""


@atexit.register
def _leave_forgotten() -> None:
    """Have workers that nobody has stopped end by themselves, as their control pipes close.

    What asyncio holds of a process would kill it when it is deleted, which ends no routine and
    leaves the socket behind.
    """
    for worker in _running:
        transport: Any = getattr(worker._process, "_transport", None)
        popen = transport.get_extra_info("subprocess") if transport is not None else None
        if popen is not None and popen.poll() is None:
            popen.returncode = 0  # As far as anyone here is concerned.
            transport.close()


def _disown() -> None:
    for worker in _running:
        worker._close_descriptors()
    _running.clear()


# A child made by fork has the control pipes and locks of its parent's workers, and would keep these
# alive when that is dead.
os.register_at_fork(after_in_child=_disown)


def check_credentials(identity: str | None, credentials: object) -> None:
    """Raises `ValueError` if a worker can't have that identity with those credentials."""
    check_identity(identity)
    if identity is not None and credentials is None:
        raise ValueError(f"identity {identity!r} needs credentials, whose certificate is for it")


def _check_place(host: str | None, port: int | None) -> None:
    if host is not None and not host.strip():
        raise ValueError("Host must be a non-blank string")
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"Port must be a positive integer, at most 65535, got {port}")


def _check_durations(grace: float, ttl: float, blocking_threshold: float | None) -> None:
    if grace <= 0:
        raise ValueError("Shutdown grace period must be positive")
    if ttl <= 0:
        raise ValueError("Proxy pool TTL must be positive")
    if blocking_threshold is not None and not blocking_threshold > 0:
        raise ValueError("Blocking threshold must be positive, or None")


def _check_limits(most: int | None, backpressure: object) -> None:
    if most is not None and type(most) is not int:
        raise TypeError(f"max_concurrent_tasks must be an int, or None, got {most!r}")
    if most is not None and most < 1:
        raise ValueError(f"max_concurrent_tasks must be positive, got {most}")
    if backpressure is not None and not callable(backpressure):
        raise TypeError(f"Expected BackpressureLike, got: {backpressure!r}")


def _dump(name: str, hook: Callable[..., object] | None) -> bytes | None:
    if hook is not None and not callable(hook):
        raise TypeError(f"{name} must be callable, or None, got {hook!r}")
    try:
        return None if hook is None else to_bytes(hook)
    except Exception as exc:
        exc.add_note(f"while pickling {name} {hook!r}")
        raise


class _StartError(Exception):
    """What a worker process said, or didn't, instead of its metadata."""

    def __init__(self, message: str, *, said: bool) -> None:
        super().__init__(message)
        self.said = said


def _make_directory() -> tuple[str, int]:
    """A new private directory for a socket, and a descriptor that locks it.

    The worker inherits the descriptor. A directory that nobody has locked belonged to a worker that
    was killed together with its parent; it is removed here.
    """
    home, prefix = str(runtime_directory()), "w"
    if len(home) > LONGEST_DIRECTORY:
        home, prefix = "/tmp", ".wool-worker-"
    for name in os.listdir(home):
        path = os.path.join(home, name)
        if name.startswith(prefix) and (lock := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    while True:
        path = tempfile.mkdtemp(prefix=prefix, dir=home)
        if (lock := _lock(path)) is not None:
            return path, lock


def _lock(path: str) -> int | None:
    """Lock a directory of this user's; None if it is locked or has just been removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and os.path.samestat(status, os.lstat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _interpreter_flags() -> list[str]:
    flags = [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        flags += ["-X", name if value is True else f"{name}={value}"]
    flags += ["-O"] * sys.flags.optimize
    if sys.flags.dont_write_bytecode:
        flags.append("-B")
    return flags


def _environment() -> dict[str, str]:
    """The parent's, with its import path, and gRPC told to stay out of forks and quiet."""
    environment = dict(os.environ)
    environment.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    environment.setdefault("GRPC_VERBOSITY", "NONE")
    # Anything but strings is overlooked by imports as well.
    places = (place for place in sys.path if isinstance(place, str) and place)
    environment["PYTHONPATH"] = os.pathsep.join(places)
    return environment


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _read_all(pipe: FileIO) -> bytes:
    """What comes until the end. A transport won't do: uvloop's closes the descriptor once more."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(pipe.fileno(), False)
    loop.add_reader(pipe.fileno(), readable.set)
    content = b""
    try:
        while (piece := pipe.read(65536)) != b"":
            content += piece or b""
            await readable.wait()
            readable.clear()
        return content
    finally:
        loop.remove_reader(pipe.fileno())

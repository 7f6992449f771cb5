"""`wool worker`, with pools that use its workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen
from uuid import uuid4

import grpc.aio
import psutil
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families

import wool
from tests.cli.commands import PATIENCE, Running, free_port, service_manager
from tests.cli.commands import wool as run
from tests.cli.routines import has_imported, held, loop_kind, pid
from tests.redis_server import RedisServer, needs_redis
from tests.support import eventually
from wool import LocalDiscovery, WorkerConnection, WorkerCredentials, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMESPACE = f"cli-{uuid4().hex[:8]}"


class Fleet:
    """Workers that several tests use, with what they said when they were ready."""

    def __init__(self, command: Running, manager: socket.socket) -> None:
        self.command = command
        self.ready = json.loads(command.line())
        self.told = manager.recv(4096).decode()
        found = re.search(r"health on port (\d+), metrics on port (\d+)$", self.ready["message"])
        assert found is not None
        self.health, self.metrics = found[1], found[2]


@pytest.fixture(scope="module")
def fleet(runtime_directory: Path) -> Iterator[Fleet]:
    address = f"@wool-{uuid4().hex}"  # In the abstract namespace.
    with (
        service_manager(f"\0{address[1:]}") as manager,
        Running(
            *("worker", "--workers", "2", "--discovery", f"local:{NAMESPACE}", "--tag", "gpu"),
            *("--health-port", "0", "--metrics-port", "0", "--log-format", "json"),
            *("--uvloop", "--import", "this_is_imported"),
            NOTIFY_SOCKET=address,
            PYTHONPATH=_module(runtime_directory, "this_is_imported"),
        ) as command,
    ):
        yield Fleet(command, manager)
        command.send(signal.SIGTERM)
        assert command.end() == 0


def _module(directory: Path, name: str) -> str:
    """Where there is a module of that name."""
    (directory / f"{name}.py").touch()
    return str(directory)


class TestServing:
    async def test_says_what_is_ready_and_where(self, fleet: Fleet) -> None:
        message = f"2 workers ready, announced at local:{NAMESPACE}"
        assert fleet.ready["message"].startswith(message)
        assert fleet.ready["level"] == "info"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fleet.ready["time"])
        assert fleet.told.startswith(f"READY=1\nSTATUS={message}")

    async def test_workers_are_found_and_prepared(self, fleet: Fleet) -> None:
        async with WorkerPool(lease=2, discovery=LocalDiscovery(NAMESPACE)):
            pids = set(await asyncio.gather(*(pid() for _ in range(20))))
            assert pids == {process.pid for process in fleet.command.workers()}
            assert await loop_kind() == "uvloop"
            assert await has_imported("this_is_imported")

    async def test_metrics_are_scraped(self, fleet: Fleet) -> None:
        async with WorkerPool(lease=2, discovery=LocalDiscovery(NAMESPACE)):
            before = await _scrape(fleet.metrics)
            await asyncio.gather(*(pid() for _ in range(10)))
            after = await _scrape(fleet.metrics)
        done = "wool_worker_tasks_done_total"
        assert before["wool_workers"][()] == 2
        assert sum(after[done].values()) - sum(before[done].values()) == 10
        assert set(after[done]) == {("0",), ("1",)}
        for name in ("resident_memory_bytes", "uptime_seconds", "cpu_seconds_total", "sessions"):
            assert all(value > 0 for value in after[f"wool_worker_{name}"].values())
        assert set(after["wool_worker_tasks_running"].values()) == {0}

    async def test_health_is_served(self, fleet: Fleet) -> None:
        healthy = await asyncio.to_thread(run, "health", f"127.0.0.1:{fleet.health}")
        assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
        unknown = await asyncio.to_thread(
            run, "health", f"127.0.0.1:{fleet.health}", "--service", "other"
        )
        assert unknown.returncode == 2
        assert "unknown service 'other'" in unknown.stderr


async def _scrape(port: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by the name of a metric and its labels, but for those of the infos."""

    def get() -> str:
        url = f"http://127.0.0.1:{port}/metrics"
        with urlopen(url, timeout=PATIENCE) as response:
            return str(response.read().decode())

    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(get)):
        for sample in family.samples:
            if not sample.name.endswith("_info"):
                labels = tuple(sample.labels.values())
                values.setdefault(sample.name, {})[labels] = sample.value
    return values


class TestEnding:
    async def test_sigterm_lets_calls_end(self, tmp_path: Path) -> None:
        with service_manager(tmp_path / "notify") as manager:
            async with WorkerPool(size=1) as pool:
                assert pool.namespace is not None
                with Running(
                    *("worker", "--workers", "1", "--join", pool.namespace, "--tag", "joined"),
                    *("--health-port", "0"),
                    NOTIFY_SOCKET=str(tmp_path / "notify"),
                ) as command:
                    health = (await asyncio.to_thread(command.line)).rpartition(" ")[2]
                    [worker] = command.workers()
                    call = await _begin_call(tmp_path / "go")
                    seen: list[str] = []
                    watching = asyncio.create_task(_watch(health, seen))
                    await eventually(lambda: seen, timeout=PATIENCE)
                    assert manager.recv(4096).startswith(b"READY=1\n")
                    command.send(signal.SIGTERM)
                    told = await asyncio.to_thread(manager.recv, 4096)
                    assert told == b"STOPPING=1\nSTATUS=lets calls end"
                    await eventually(lambda: len(_active().workers) == 1, timeout=PATIENCE)
                    probe = await asyncio.to_thread(run, "health", f"127.0.0.1:{health}")
                    assert (probe.returncode, probe.stdout) == (1, "NOT_SERVING\n")
                    await watching
                    assert seen == ["SERVING", "NOT_SERVING"]
                    assert await pid() != worker.pid
                    assert not call.done()
                    (tmp_path / "go").touch()
                    assert await call == worker.pid
                    assert await asyncio.to_thread(command.end) == 0

    async def test_signal_before_they_are_ready(self) -> None:
        with Running("worker", "--workers", "1", "--join", "early") as command:
            await eventually(command.workers, timeout=PATIENCE)
            [worker] = command.workers()
            command.send(signal.SIGTERM)
            assert await asyncio.to_thread(command.end) == 0
            assert not psutil.pid_exists(worker.pid)

    async def test_worker_that_is_told_to_stop_is_withdrawn_while_it_drains(
        self, tmp_path: Path
    ) -> None:
        with Running(
            *("worker", "--workers", "1", "--join", "told", "--tag", "joined"),
            *("--health-port", "0"),
        ) as command:
            health = (await asyncio.to_thread(command.line)).rpartition(" ")[2]
            async with WorkerPool(lease=1, discovery=LocalDiscovery("told")):
                call = await _begin_call(tmp_path / "go")
                stopping = asyncio.create_task(
                    asyncio.to_thread(run, "stop", "--tag", "joined", "--join", "told")
                )
                await eventually(lambda: not _active().workers, timeout=PATIENCE)
                await _watch(health, [])
                assert not call.done()
                (tmp_path / "go").touch()
                await call
                assert (await stopping).stdout.endswith("has stopped\n")
            assert await asyncio.to_thread(command.end) == 0

    async def test_second_signal_cancels_them(self, tmp_path: Path) -> None:
        with Running("worker", "--workers", "1", "--join", "twice", "--tag", "joined") as command:
            await asyncio.to_thread(command.line)
            async with WorkerPool(lease=1, discovery=LocalDiscovery("twice")):
                call = await _begin_call(tmp_path / "go")
                [metadata] = _active().workers
                command.send(signal.SIGINT)
                connection = WorkerConnection(metadata.address)
                async with asyncio.timeout(PATIENCE):
                    while not (await connection.status()).draining:
                        pass
                await connection.close()
                assert not call.done()
                command.send(signal.SIGTERM)
                with pytest.raises((asyncio.CancelledError, wool.WorkerLost)):
                    await call
            assert await asyncio.to_thread(command.end) == 128 + signal.SIGTERM
            assert not psutil.pid_exists(metadata.pid)

    async def test_killed_worker_is_replaced_and_killed_parent_leaves_nobody(self) -> None:
        with Running("worker", "--workers", "1", "--join", "killed") as command:
            line = await asyncio.to_thread(command.line)
            assert line == "1 worker ready, announced at local:killed"
            async with WorkerPool(lease=1, discovery=LocalDiscovery("killed")):
                first = await pid()
                os.kill(first, signal.SIGKILL)
                second = first
                while second == first:
                    with suppress(wool.WorkerLost):
                        second = await pid()
                assert "was killed by signal SIGKILL" in command.errors
                command.send(signal.SIGKILL)
                await eventually(lambda: not psutil.pid_exists(second), timeout=PATIENCE)
                await eventually(lambda: not _active().workers, timeout=PATIENCE)


class TestRecycling:
    async def test_under_load_no_call_is_lost(self) -> None:
        """All that it is told comes from the environment."""
        given = {
            "WOOL_WORKERS": "1",
            "WOOL_JOIN": "recycled",
            "WOOL_MAX_TASKS_PER_CHILD": "100",
            "WOOL_LOG_FORMAT": "json",
        }
        with Running("worker", **given) as command:
            assert json.loads(await asyncio.to_thread(command.line))["level"] == "info"
            async with (
                asyncio.timeout(PATIENCE),
                WorkerPool(lease=1, discovery=LocalDiscovery("recycled")),
            ):
                pids: list[int] = []
                while len(set(pids)) < 3:
                    pids += await asyncio.gather(*(pid() for _ in range(20)))
            first = min(set(pids), key=pids.index)
            assert pids.count(first) >= 100
            await eventually(lambda: not psutil.pid_exists(first), timeout=PATIENCE)
            command.send(signal.SIGTERM)
            assert await asyncio.to_thread(command.end) == 0
            lines = [*map(json.loads, command.errors.splitlines())]
            assert any("is to be replaced: it has run" in line["message"] for line in lines)

    async def test_counters_go_on_from_one_worker_to_the_next(self, tmp_path: Path) -> None:
        with Running(
            *("worker", "--workers", "1", "--join", "counted", "--max-tasks-per-child", "3"),
            *("--metrics-port", "0"),
        ) as command:
            metrics = (await asyncio.to_thread(command.line)).rpartition(" ")[2]

            async def done() -> float:
                return (await _scrape(metrics))["wool_worker_tasks_done_total"]["0",]

            async with (
                asyncio.timeout(PATIENCE),
                WorkerPool(lease=2, discovery=LocalDiscovery("counted")),
            ):
                last = asyncio.create_task(held(str(tmp_path / "go")))
                await eventually((tmp_path / "go.started").exists, timeout=PATIENCE)
                [first, *_] = [await pid() for _ in range(3)]
                counts = [await done()]
                while await pid() == first:
                    counts.append(await done())
                counts.append(await done())
                assert not last.done()
                (tmp_path / "go").touch()
                assert await last == first
                await eventually(lambda: not psutil.pid_exists(first), timeout=PATIENCE)
                before, *_ = counts
                counts.append(await done())
                assert counts == sorted(counts)
                assert counts[-1] == before + len(counts) - 1
                command.send(signal.SIGTERM)
            assert await asyncio.to_thread(command.end) == 0

    async def test_worker_with_too_much_memory_is_replaced_at_its_port(self) -> None:
        port = free_port()
        with Running(
            *("worker", "--workers", "1", "--join", "large", "--max-memory", "1M"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ) as command:
            await asyncio.to_thread(command.line)
            connection = WorkerConnection(f"127.0.0.1:{port}")
            pids: set[int] = set()
            async with asyncio.timeout(PATIENCE):
                while len(pids) < 2:
                    with suppress(wool.RpcError):
                        pids.add((await connection.status(timeout=1)).worker.pid)
            await connection.close()
            command.send(signal.SIGTERM)
            assert await asyncio.to_thread(command.end) == 0


class TestTls:
    async def test_workers_are_called_by_who_has_certificates(self, tmp_path: Path) -> None:
        files = _certificates(tmp_path)
        port = free_port()
        address = f"localhost:{port}"
        with Running(
            *("worker", "--workers", "1", "--join", "tls", "--port", str(port)),
            *("--host", "127.0.0.1", "--metrics-port", "0", *files),
        ) as command:
            metrics = (await asyncio.to_thread(command.line)).rpartition(" ")[2]
            credentials = WorkerCredentials.from_files(files[1], files[3], files[5])
            async with WorkerPool(
                lease=1, discovery=LocalDiscovery("tls"), credentials=credentials
            ):
                assert await pid() == command.workers()[0].pid
            commands = [
                ("health", address, *files),
                ("health", address),
                ("status", "--json", "--join", "tls", *files),
                ("status", "--json", "--join", "tls"),
                ("stop", "--all", "--join", "tls"),
            ]
            ended = await asyncio.gather(
                *(asyncio.to_thread(run, *arguments) for arguments in commands)
            )
            assert [each.returncode for each in ended] == [0, 2, 0, 1, 1]
            assert ended[0].stdout == "SERVING\n"
            assert json.loads(ended[2].stdout)["workers"][0]["done"] == 1
            problem = "it has TLS: give --ca, --key and --cert"
            assert json.loads(ended[3].stdout)["workers"][0]["problem"] == problem
            assert ended[4].stderr.endswith(f"was not stopped: {problem}\n")
            scraped = await _scrape(metrics)
            assert scraped["wool_worker_tasks_done_total"] == {("0",): 1}
            command.send(signal.SIGTERM)
            assert await asyncio.to_thread(command.end) == 0


def _certificates(directory: Path) -> list[str]:
    """The options that name them."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    content = {
        "ca": authority.cert_pem.bytes(),
        "key": issued.private_key_pem.bytes(),
        "cert": issued.cert_chain_pems[0].bytes(),
    }
    options = []
    for name, data in content.items():
        (directory / name).write_bytes(data)
        options += [f"--{name}", str(directory / name)]
    return options


class TestBeyondThisMachine:
    @needs_redis
    async def test_workers_are_found_through_redis(self) -> None:
        with RedisServer() as server:
            place = f"{server.url}#farm"
            with Running(
                *("worker", "--workers", "1", "--discovery", place, "--advertise", "127.0.0.1")
            ) as command:
                assert (await asyncio.to_thread(command.line)).endswith(f"announced at {place}")
                warning = "A worker on 0.0.0.0 without credentials runs code for anyone"
                assert warning in command.errors
                status = await asyncio.to_thread(
                    run, "status", "--json", "--wait", "0.5", WOOL_DISCOVERY=place
                )
                [found] = json.loads(status.stdout)["workers"]
                assert found["address"].startswith("127.0.0.1:")
                assert found["pid"] == command.workers()[0].pid
                command.send(signal.SIGTERM)
                assert await asyncio.to_thread(command.end) == 0

    async def test_server_that_is_not_there(self) -> None:
        place = f"redis://127.0.0.1:{free_port()}"
        ended = await asyncio.to_thread(run, "worker", "--discovery", place)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("Error: ")
        assert len(ended.stderr.splitlines()) == 1


class TestFailing:
    async def test_worker_that_can_not_start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            no_module, no_port = await asyncio.gather(
                asyncio.to_thread(run, "worker", "--workers", "1", "--import", "no_such_module"),
                asyncio.to_thread(run, "worker", "--workers", "1", "--port", port),
            )
        assert (no_module.returncode, no_module.stdout) == (1, "")
        assert no_module.stderr == (
            "Error: Worker process failed to start - ModuleNotFoundError: No module named "
            "'no_such_module' (its process exited with code 1)\n"
        )
        assert (no_port.returncode, no_port.stdout) == (1, "")
        assert f"127.0.0.1:{port}" in no_port.stderr

    @pytest.mark.parametrize("option", ["--health-port", "--metrics-port"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
    async def test_port_that_is_taken(self, option: str, host: str) -> None:
        with socket.create_server((host, 0)) as taken:
            port = str(taken.getsockname()[1])
            ended = await asyncio.to_thread(
                run, "worker", "--workers", "1", "--join", "taken", option, port
            )
        assert (ended.returncode, ended.stdout) == (1, "")
        message = f"Error: {option} {port} can't be had: [Errno 98] Address already in use\n"
        assert ended.stderr == message


def _active() -> wool.WorkerProxy:
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, wool.WorkerProxy)
    return proxy


async def _watch(port: str, seen: list[str]) -> None:
    """Add what a watcher of the health service is told until nothing is served."""
    async with (
        asyncio.timeout(PATIENCE),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        aclosing(HealthStub(channel).Watch(HealthCheckRequest()).__aiter__()) as answers,
    ):
        async for answer in answers:
            seen.append(HealthCheckResponse.ServingStatus.Name(answer.status))
            if seen[-1] == "NOT_SERVING":
                return


async def _begin_call(path: Path) -> asyncio.Task[int]:
    """A call that runs in a worker that has joined until there is a file at `path`."""
    in_joined: Any = held.options(tags={"joined"})  # type: ignore[attr-defined]
    call = asyncio.create_task(in_joined(str(path)))
    await eventually(path.with_name(path.name + ".started").exists, timeout=PATIENCE)
    return call

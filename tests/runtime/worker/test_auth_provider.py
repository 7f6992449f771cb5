"""Credentials that are renewed, and whom they are for."""

from __future__ import annotations

import logging
import pickle
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.runtime.worker.peers import task_of
from tests.runtime.worker.routines import echo, nap, pid
from tests.runtime.worker.test_handshake import AUTHORITY, STRANGER, issue, serving
from tests.support import eventually
from wool import LocalWorker, NoWorkersAvailable, WorkerConnection, WorkerCredentials, WorkerProxy
from wool.runtime.errors import IneffectivePeersWarning
from wool.runtime.worker.auth import WorkerCredentialsProvider
from wool.runtime.worker.base import WorkerOptions

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

OLD = WorkerCredentials(b"old ca", b"old key", b"old cert")
NEW = WorkerCredentials(b"new ca", b"new key", b"new cert")


class Source:
    """A factory that returns what it is told to, and counts."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.calls = 0

    def __call__(self) -> WorkerCredentials:
        self.calls += 1
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]


def reloadable(*results: Any, fresh_for: float = 0) -> WorkerCredentialsProvider:
    return WorkerCredentialsProvider(Source(*results), reloadable=True, fresh_for=fresh_for)


def test_fixed_credentials_are_made_once() -> None:
    source = Source(OLD, NEW)
    provider = WorkerCredentialsProvider(source, fresh_for=0)
    assert [provider.credentials for _ in range(3)] == [OLD] * 3
    assert source.calls == 1


def test_reloadable_credentials_are_renewed() -> None:
    provider = reloadable(OLD, NEW)
    assert [provider.credentials for _ in range(2)] == [NEW, NEW]


def test_reloadable_credentials_are_fresh_for_a_while() -> None:
    provider = reloadable(OLD, NEW, fresh_for=60)
    assert [provider.credentials for _ in range(3)] == [OLD] * 3


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (OSError("no such file"), "no such file"),
        (WorkerCredentials(b"", b"", b"", mutual=False), "mutual can't change to False"),
        (("ca", "the key", "cert"), "must return WorkerCredentials, got a tuple"),
    ],
)
def test_failed_renewal_is_told_and_changes_nothing(
    failure: object, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = reloadable(OLD, failure, NEW)
    assert provider.credentials == OLD
    assert text in caplog.text
    assert "the key" not in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert provider.credentials == NEW


def test_nobody_waits_for_a_renewal_but_who_asks_for_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def renew() -> WorkerCredentials:
        if threading.current_thread() is threading.main_thread():
            return OLD
        begun.set()
        assert go_on.wait(60)
        return NEW

    provider = WorkerCredentialsProvider(renew, reloadable=True, fresh_for=0)
    results = []
    thread = threading.Thread(target=lambda: results.append(provider.credentials))
    thread.start()
    assert begun.wait(60)
    assert provider.credentials == OLD
    go_on.set()
    thread.join()
    assert results == [NEW]


def test_factory_that_fails_at_once() -> None:
    with pytest.raises(OSError, match="no such file"):
        reloadable(OSError("no such file"))
    with pytest.raises(TypeError, match="must return WorkerCredentials, got a int"):
        reloadable(1)


@pytest.mark.parametrize("fresh_for", [-1, float("nan"), float("inf")])
def test_freshness_out_of_range(fresh_for: float) -> None:
    with pytest.raises(ValueError, match="fresh_for must be a number of seconds, 0 or more"):
        WorkerCredentialsProvider(Source(OLD), fresh_for=fresh_for)


def test_coerce() -> None:
    provider = OLD.as_provider(peers="a")
    assert WorkerCredentialsProvider.coerce(provider) is provider
    assert WorkerCredentialsProvider.coerce(None) is None
    coerced = WorkerCredentialsProvider.coerce(OLD)
    assert coerced is not None
    assert coerced.credentials is OLD
    with pytest.raises(TypeError, match=r"credentials must be .*, not of type str"):
        WorkerCredentialsProvider.coerce("credentials")  # type: ignore[arg-type]


def test_equality() -> None:
    """Connections with equal credentials share a session."""
    assert OLD.as_provider() == OLD.as_provider()
    assert hash(OLD.as_provider()) == hash(OLD.as_provider())
    assert OLD.as_provider() != NEW.as_provider()
    assert OLD.as_provider() != OLD.as_provider(peers="a")
    changing = reloadable(OLD)
    assert changing == changing
    assert changing != reloadable(OLD)
    assert len({changing, reloadable(OLD), OLD.as_provider()}) == 3
    assert OLD.as_provider() != OLD


# Whom they are for


@pytest.mark.parametrize(
    ("peers", "accepted", "refused"),
    [
        (None, ["a", "b", None], []),
        ("a", ["a"], ["b", "", None]),
        (["a", " b "], ["a", "b"], ["c", None]),
        (lambda identity: identity is None or identity.endswith(".farm"), ["x.farm", None], ["x"]),
    ],
)
def test_peers(peers: Any, accepted: list[str | None], refused: list[str | None]) -> None:
    provider = OLD.as_provider(peers=peers)
    for one in (provider, pickle.loads(pickle.dumps(provider))):
        assert all(one.accepts_peer(identity) for identity in accepted)
        assert not any(one.accepts_peer(identity) for identity in refused)


def test_function_that_raises_accepts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    provider = OLD.as_provider(peers=lambda identity: identity.startswith("a"))
    assert not provider.accepts_peer(None)
    assert "can't tell whether to call a worker of identity None" in caplog.text


@pytest.mark.parametrize("peers", ["", " ", [], ["", "  "]])
def test_peers_that_name_nobody(peers: Any) -> None:
    with pytest.warns(IneffectivePeersWarning, match="names nobody"):
        provider = OLD.as_provider(peers=peers)
    assert provider.peers is None
    assert provider.accepts_peer("anybody")


def test_peers_of_another_type() -> None:
    with pytest.raises(TypeError, match="peers must be names or a function"):
        OLD.as_provider(peers=[1])  # type: ignore[list-item]

    async def accepts(identity: str | None) -> bool:
        return False

    with pytest.raises(TypeError, match="peers must be names or a function that returns a bool"):
        OLD.as_provider(peers=accepts)  # type: ignore[arg-type]

    @dataclass
    class Unhashable:
        def __call__(self, identity: str | None) -> bool:
            return False

    with pytest.raises(TypeError, match="unhashable type: 'Unhashable'"):
        OLD.as_provider(peers=Unhashable())


def test_descriptions() -> None:
    assert repr(OLD.as_provider()) == "<WorkerCredentialsProvider fixed, for any worker>"
    assert "for workers of identity 'a' or 'b'" in repr(OLD.as_provider(peers=["b", "a"]))
    assert "reloadable" in repr(reloadable(OLD))
    assert (
        "identity satisfies <function" in OLD.as_provider(peers=lambda name: True).describe_peers()
    )


# Pickled


def test_fixed_credentials_pickle_without_their_factory() -> None:
    lock = threading.Lock()
    provider = WorkerCredentialsProvider(lambda: OLD if lock else NEW, peers="a")
    copy = pickle.loads(pickle.dumps(provider))
    assert copy == provider
    assert copy.credentials == OLD


def test_reloadable_credentials_pickle_with_their_factory(tmp_path: Path) -> None:
    write(tmp_path, AUTHORITY)
    provider = reloadable_files(tmp_path)
    copy = pickle.loads(pickle.dumps(provider))
    before = copy.credentials
    write(tmp_path, STRANGER)
    assert copy.credentials.ca_cert != before.ca_cert
    assert copy.credentials == provider.credentials


def test_what_can_not_be_pickled_is_named() -> None:
    lock = threading.Lock()
    provider = WorkerCredentialsProvider(lambda: OLD if lock else NEW, reloadable=True)
    with pytest.raises(TypeError, match=r"<WorkerCredentialsProvider .*> can't be pickled, to be"):
        pickle.dumps(provider)


# In use


def write(directory: Path, authority: trustme.CA, *names: str) -> None:
    """Files of a certificate for these names, by an authority that its holder trusts."""
    credentials = issue(*(names or ("127.0.0.1",)), authority=authority, trusted=authority)
    for name in ("ca_cert", "worker_key", "worker_cert"):
        (directory / name).write_bytes(getattr(credentials, name))


def reloadable_files(directory: Path, **more: Any) -> WorkerCredentialsProvider:
    paths = [directory / name for name in ("ca_cert", "worker_key", "worker_cert")]
    return WorkerCredentialsProvider(
        partial(WorkerCredentials.from_files, *paths), reloadable=True, fresh_for=0, **more
    )


async def test_worker_presents_renewed_credentials_without_a_restart(tmp_path: Path) -> None:
    write(tmp_path, AUTHORITY)
    old = issue("me", authority=AUTHORITY, trusted=AUTHORITY)
    new = issue("me", authority=STRANGER, trusted=STRANGER)
    async with serving(reloadable_files(tmp_path)) as metadata:
        async with WorkerProxy(workers=[metadata], credentials=old):
            assert await pid() == metadata.pid
            write(tmp_path, STRANGER)
            async with WorkerProxy(workers=[metadata], credentials=new):
                assert await pid() == metadata.pid
            assert await pid() == metadata.pid
        async with WorkerProxy(workers=[metadata], credentials=old):
            with pytest.raises(NoWorkersAvailable, match="of an authority that is not trusted"):
                await pid()


async def test_worker_keeps_its_credentials_when_the_files_are_gone(tmp_path: Path) -> None:
    write(tmp_path, AUTHORITY)
    async with serving(reloadable_files(tmp_path)) as metadata:
        (tmp_path / "worker_key").unlink()
        async with WorkerProxy(workers=[metadata], credentials=issue("me")):
            assert await pid() == metadata.pid


async def test_client_presents_renewed_credentials_when_it_connects_again(tmp_path: Path) -> None:
    write(tmp_path, AUTHORITY)
    provider = reloadable_files(tmp_path)
    worker = LocalWorker(host="127.0.0.1", credentials=provider)
    await worker.start()
    assert worker.address is not None
    port = int(worker.address.rpartition(":")[2])
    connection = WorkerConnection(worker.address, credentials=provider)
    assert await anext(await connection.dispatch(task_of(echo, 1))) == 1
    await worker.stop()

    write(tmp_path, STRANGER)
    worker = LocalWorker(host="127.0.0.1", port=port, credentials=provider)
    await worker.start()
    assert await anext(await connection.dispatch(task_of(echo, 2))) == 2
    await connection.close()
    await worker.stop()


async def test_running_call_survives_the_renewal_of_credentials(tmp_path: Path) -> None:
    """Whoever opens a connection meanwhile leaves the old one to it."""
    write(tmp_path, AUTHORITY)
    provider = reloadable_files(tmp_path)
    options = WorkerOptions(max_connection_age_ms=200)
    worker = LocalWorker(host="127.0.0.1", credentials=provider, options=options)
    await worker.start()
    assert worker.address is not None
    connection = WorkerConnection(worker.address, credentials=provider)
    running = await connection.dispatch(task_of(nap, str(tmp_path / "nap"), 1))
    write(tmp_path, AUTHORITY)
    assert connection._link is not None
    first = connection._link._channel
    await eventually(lambda: connection._link is not None and connection._link.ready is None)
    assert await anext(await connection.dispatch(task_of(echo, 2))) == 2
    assert connection._link._channel is not first
    await connection.stop(timeout=30)
    assert await anext(running) == "slept"
    await connection.close()
    await worker.stop()


async def test_renewal_that_takes_long_holds_up_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wool.runtime.worker.connection.RENEWAL_TIMEOUT", 0.1)
    credentials, go_on = issue("127.0.0.1"), threading.Event()

    def renew() -> WorkerCredentials:
        if threading.current_thread() is not threading.main_thread():
            go_on.wait(60)
        return credentials

    provider = WorkerCredentialsProvider(renew, reloadable=True, fresh_for=0)
    async with (
        serving(credentials) as metadata,
        WorkerProxy(workers=[metadata], credentials=provider),
    ):
        assert await pid() == metadata.pid
    go_on.set()
    assert "takes over 0.1 s to renew credentials" in caplog.text


def test_server_credentials_are_grpcs() -> None:
    credentials = issue("me")
    for provider in (credentials.as_provider(), reloadable(credentials)):
        assert isinstance(provider.server_credentials(), grpc.ServerCredentials)

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.conformance.discovery import make_worker
from wool.runtime.discovery import records
from wool.runtime.discovery.descriptors import Descriptor
from wool.runtime.discovery.records import Directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directory:
    monkeypatch.setattr(records, "runtime_directory", lambda: tmp_path)
    records._warn_once.cache_clear()
    return Directory("namespace")


@pytest.fixture
def worker_name() -> str:
    return make_worker().uid.hex


def put(directory: Directory, name: str, content: bytes) -> str:
    directory.make()
    path = os.path.join(directory.path, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def drafts(directory: Directory) -> list[str]:
    root = os.path.dirname(directory.path)
    return [name for name in os.listdir(root) if name.startswith(".")]


@given(st.text())
def test_directory_has_safe_name(namespace: str) -> None:
    name = os.path.basename(Directory(namespace).path)

    assert name.isascii()
    assert set(name).isdisjoint("/\\.:* \n\0")
    assert name == name.lower()
    assert 0 < len(name) < 100


@given(st.text(), st.text())
def test_directory_has_name_of_its_own(one: str, other: str) -> None:
    assume(one != other)

    assert Directory(one).path.lower() != Directory(other).path.lower()


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "A"), ("a b", "a-b"), ("", "-"), ("x" * 999, "x" * 998), ("\xe9", "e\u0301")],
)
def test_directory_of_similar_namespaces(one: str, other: str) -> None:
    assert Directory(one).path != Directory(other).path


def test_write_that_finds_no_room_names_the_file(directory: Directory) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            directory.write(make_worker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.path.dirname(caught.value.filename) == os.path.dirname(directory.path)
    assert drafts(directory) == []


def test_write_and_look(directory: Directory) -> None:
    worker = make_worker(extra={"zone": "a"})
    with closing(directory.write(worker)):
        sighting = directory.look(worker.uid.hex)

        assert sighting is not None
        assert sighting.metadata == worker
        assert directory.look(worker.uid.hex, sighting) is sighting
        assert directory.names() == {worker.uid.hex}


def test_write_is_private(directory: Directory) -> None:
    worker = make_worker()
    with closing(directory.write(worker)) as record:
        assert os.stat(directory.path).st_mode & 0o777 == 0o700
        assert os.fstat(record.fd).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(record.fd)


def test_write_twice_in_a_tick_is_noticed(directory: Directory) -> None:
    """Same size, maybe the same inode, and the file system's clock may not have moved."""
    worker = make_worker(address="127.0.0.1:10000")
    sighting = None
    record = directory.write(worker)
    for port in range(10000, 10200):
        worker = replace(worker, address=f"127.0.0.1:{port}")
        previous, record = record, directory.write(worker)
        previous.close()
        sighting = directory.look(worker.uid.hex, sighting)
        assert sighting is not None
        assert sighting.metadata == worker
    record.close()


def test_look_removes_record_without_owner(directory: Directory) -> None:
    worker = make_worker()
    directory.write(worker).close()

    assert directory.look(worker.uid.hex) is None
    assert directory.names() == set()


def test_look_at_record_replaced_meanwhile(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner updates a record between our opening and our locking it: that is not a death."""
    worker = make_worker()
    old = directory.write(worker)
    changed = replace(worker, address="127.0.0.1:2")
    new: list[Descriptor] = []
    lock = Descriptor.lock

    def update_then_lock(file: Descriptor) -> bool:
        monkeypatch.undo()
        new.append(directory.write(changed))
        old.close()
        return lock(file)

    monkeypatch.setattr(Descriptor, "lock", update_then_lock)
    sighting = directory.look(worker.uid.hex)

    assert sighting is not None
    assert sighting.metadata == changed
    new[0].close()


def test_look_at_dead_record_removed_meanwhile(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()
    directory.write(worker).close()
    lock = Descriptor.lock

    def remove_then_lock(file: Descriptor) -> bool:
        directory.remove(worker.uid.hex)
        return lock(file)

    monkeypatch.setattr(Descriptor, "lock", remove_then_lock)

    assert directory.look(worker.uid.hex) is None


def test_look_at_dead_record_that_cannot_be_removed(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker()
    directory.write(worker).close()
    monkeypatch.setattr(os, "unlink", refuse)

    assert directory.look(worker.uid.hex) is None
    assert "Permission denied" in caplog.text


def refuse(*args: object, **kwargs: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def garbage() -> Iterator[tuple[str, bytes]]:
    worker = make_worker()
    message = worker.to_protobuf()
    yield "garbage", b"\xff" * 64
    yield "empty", b""
    yield "truncated", message.SerializeToString()[:-3]
    yield "another worker's", message.SerializeToString()
    message.wire += 1
    yield "another wire format", message.SerializeToString()
    message = worker.to_protobuf()
    message.extra = "[1]"
    yield "another extra", message.SerializeToString()
    message.extra = "{"
    yield "broken extra", message.SerializeToString()
    message.uid = b"short"
    yield "broken uid", message.SerializeToString()


GARBAGE = dict(garbage())


@pytest.mark.parametrize("kind", GARBAGE)
def test_look_at_nonsense(
    directory: Directory,
    worker_name: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """It is logged once and left alone, as it may make sense to others."""
    put(directory, worker_name, GARBAGE[kind])

    for _ in range(3):
        sighting = directory.look(worker_name)
        assert sighting is not None
        assert sighting.metadata is None
        assert directory.look(worker_name, sighting) is sighting
    assert [record.name for record in caplog.records] == ["wool.discovery.local"]
    assert worker_name in caplog.text
    assert directory.names() == {worker_name}


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_look_at_what_is_no_file(
    directory: Directory, worker_name: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    directory.make()
    path = os.path.join(directory.path, worker_name)
    match kind:
        case "directory":
            os.mkdir(path)
        case "pipe":
            os.mkfifo(path)
        case "link":
            os.symlink(put(directory, "target", b""), path)

    sighting = directory.look(worker_name)

    assert sighting is None or sighting.metadata is None
    assert len(caplog.records) == 1


def test_look_at_foreign_name(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    put(directory, "README", b"")

    assert directory.look("README") is directory.look("README") is None
    assert caplog.messages == [
        f"Passing over {directory.path}/README: its name is not a worker's uid"
    ]


def test_look_out_of_descriptors(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be opened for want of descriptors hasn't gone."""
    worker = make_worker()
    with closing(directory.write(worker)):
        sighting = directory.look(worker.uid.hex)
        monkeypatch.setattr(os, "open", exhausted)
        monkeypatch.setattr(os, "listdir", exhausted)

        assert directory.look(worker.uid.hex, sighting) is sighting
        assert directory.names() is None
        assert "Too many open files" in caplog.text
        monkeypatch.undo()


def exhausted(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("function", ["write", "utime", "rename"])
def test_write_fails(directory: Directory, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """A73: what was there stays, and nothing else."""
    worker = make_worker()
    with closing(directory.write(worker)):
        if function == "write":
            monkeypatch.setattr(records, "open", exhausted, raising=False)
        else:
            monkeypatch.setattr(os, function, exhausted)
        with pytest.raises(OSError, match="Too many open files"):
            directory.write(replace(worker, pid=1))
        monkeypatch.undo()

        sighting = directory.look(worker.uid.hex)
        assert sighting is not None
        assert sighting.metadata == worker
        assert drafts(directory) == []


def test_write_what_cannot_be_encoded(directory: Directory) -> None:
    with pytest.raises(TypeError):
        directory.write(make_worker(extra={"it": object()}))

    assert directory.names() == set()


def test_write_while_directory_is_removed(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A74: somebody who leaves removes the empty directory just as we come."""
    make = Directory.make
    removals = iter([directory.prune] * 3)

    def make_then_remove(self: Directory) -> None:
        make(self)
        next(removals, lambda: None)()

    monkeypatch.setattr(Directory, "make", make_then_remove)
    worker = make_worker()

    with closing(directory.write(worker)):
        assert directory.names() == {worker.uid.hex}


def test_write_gives_up(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directory, "make", lambda self: None)

    with pytest.raises(FileNotFoundError, match="keeps being removed by others"):
        directory.write(make_worker())


def test_write_while_draft_is_swept(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Descriptor.lock
    answers = iter([False])
    monkeypatch.setattr(Descriptor, "lock", lambda self: next(answers, True) and lock(self))
    worker = make_worker()

    with closing(directory.write(worker)):
        assert directory.names() == {worker.uid.hex}
        assert drafts(directory) == []


def test_sweep_removes_dead_drafts(directory: Directory) -> None:
    directory.sweep()
    directory.make()
    root = os.path.dirname(directory.path)
    dead, alive = (os.path.join(root, name) for name in (".dead", ".alive"))
    with open(dead, "w"), open(alive, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        directory.sweep()
        assert drafts(directory) == [".alive"]
    directory.sweep()

    assert drafts(directory) == []


def test_sweep_removes_namespaces_of_the_dead(directory: Directory) -> None:
    mixed, dead, used, foreign = (Directory(name) for name in ("mixed", "dead", "used", "foreign"))
    put(foreign, "README", b"")
    for one in (mixed, dead):
        one.write(make_worker()).close()
    with closing(mixed.write(make_worker())), closing(used.write(make_worker())):
        directory.sweep()

        assert not os.path.exists(dead.path)
        assert os.path.exists(mixed.path)
        assert len(used.names() or ()) == 1
        assert foreign.names() == {"README"}


def test_sweep_keeps_empty_namespace_for_a_while(directory: Directory) -> None:
    directory.make()
    directory.sweep()
    assert os.path.exists(directory.path)
    os.utime(directory.path, (0, 0))
    directory.sweep()
    assert not os.path.exists(directory.path)


def test_sweep_keeps_what_cannot_be_opened(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()
    directory.write(worker).close()
    monkeypatch.setattr(os, "open", exhausted)
    directory.sweep()

    assert directory.names() == {worker.uid.hex}


def test_remove_is_idempotent(directory: Directory, worker_name: str) -> None:
    directory.remove(worker_name)

    assert directory.open(worker_name) is None


def test_prune_keeps_what_is_in_use(directory: Directory) -> None:
    worker = make_worker()
    with closing(directory.write(worker)):
        directory.prune()
        assert directory.names() == {worker.uid.hex}
        directory.remove(worker.uid.hex)
    directory.prune()
    directory.prune()

    assert not os.path.exists(os.path.dirname(directory.path))


def test_warnings_go_to_the_local_discovery_logger() -> None:
    assert records.logger is logging.getLogger("wool.discovery.local")

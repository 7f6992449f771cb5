"""Where workers meet, in words, and several such places as one."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import dns.rcode
import pytest
import trustme

from tests.dns_server import NameServer
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from wool import DnsDiscovery, LanDiscovery, LocalDiscovery, RedisDiscovery
from wool.cli.certificates import certified_name
from wool.cli.finding import Finder, UnreachableError
from wool.cli.places import Place, Several, together
from wool.cli.systemd import notify

if TYPE_CHECKING:
    from pathlib import Path

    from wool import DiscoveryLike


@pytest.mark.parametrize(
    ("text", "discovery"),
    [
        ("local:a", LocalDiscovery("a")),
        ("lan", LanDiscovery("wool")),
        ("lan:a", LanDiscovery("a")),
        ("redis://host:1/2", RedisDiscovery("wool", url="redis://host:1/2")),
        ("rediss://u:p@host#a", RedisDiscovery("a", url="rediss://u:p@host")),
        ("dns:a.example:80", DnsDiscovery("a.example", 80)),
        ("dns:_wool._tcp.example", DnsDiscovery("_wool._tcp.example")),
    ],
)
def test_place(text: str, discovery: object) -> None:
    assert Place.parse(text).discovery() == discovery


def test_place_tells_no_password() -> None:
    assert str(Place.parse("redis://user:secret@host:1/2#a")) == "redis://host:1/2#a"


@pytest.mark.parametrize("text", ["", "local", "local:", "dns:", "dns:a:b", "redis:host", "a:b"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected local:NAME, lan\[:NAME\]"):
        Place.parse(text)


class Hosted(MemoryDiscovery):
    def __init__(self, host: str) -> None:
        super().__init__()
        self.bind_host = host


def test_one_place_is_itself() -> None:
    only = MemoryDiscovery()
    assert together([only]) is only


async def test_announces_everywhere() -> None:
    places = [Hosted("127.0.0.1"), Hosted("0.0.0.0"), MemoryDiscovery()]
    worker = made_up()
    async with Several(places).publisher as publisher:
        assert publisher.bind_host == "0.0.0.0"
        await publisher.publish("worker-added", worker)
        assert [place.told("worker-added") for place in places] == [[worker]] * 3


async def test_what_is_not_announced_everywhere_is_told() -> None:
    class Deaf(MemoryDiscovery):
        async def publish(self, type: object, metadata: object) -> None:
            raise OSError("nobody listens")

    place = MemoryDiscovery()
    async with Several([Deaf(), place]).publisher as publisher:
        with pytest.raises(ExceptionGroup, match="worker-added was not announced everywhere"):
            await publisher.publish("worker-added", made_up())
    assert len(place.told("worker-added")) == 1


async def test_worker_is_there_as_long_as_it_is_in_one_place() -> None:
    one, other = LocalDiscovery("one"), LocalDiscovery("other")
    worker = made_up()
    subscriber = pickle.loads(pickle.dumps(Several([one, other]).subscribe()))
    async with (
        asyncio.timeout(10),
        one.publisher as first,
        other.publisher as second,
        aclosing(cast("Any", aiter(subscriber))) as events,
    ):
        await first.publish("worker-added", worker)
        await second.publish("worker-added", worker)
        seen = [await anext(events)]
        await first.publish("worker-dropped", worker)
        await second.publish("worker-dropped", worker)
        seen.append(await anext(events))
    assert [event.type for event in seen] == ["worker-added", "worker-dropped"]


@pytest.mark.parametrize("beside", [[], [LocalDiscovery("beside")]], ids=["alone", "beside"])
@pytest.mark.parametrize("port", [80, None])
async def test_name_that_does_not_resolve_is_told(
    port: int | None, beside: list[DiscoveryLike]
) -> None:
    async with NameServer() as server:
        discovery = DnsDiscovery("workers.example", port, nameserver=server.address)
        finder = Finder(together([discovery, *beside]), None, wait=0.1)
        with pytest.raises(UnreachableError, match=r"names? (does not )?exist: workers\.example\."):
            await finder.find()
        server.failure = dns.rcode.REFUSED
        with pytest.raises(UnreachableError, match="REFUSED"):
            await finder.find()
        server.failure = None
        server.records["workers.example", "TXT"] = ["it is there"]
        assert await finder.find() == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["127.0.0.1", "a.example"], "a.example"), (["127.0.0.1"], "127.0.0.1"), (["*.a"], "*.a")],
)
def test_name_that_a_certificate_is_for(names: list[str], expected: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, key, cert = (tmp_path / name for name in ("ca", "key", "cert"))
    issued = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(str(ca))
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    assert certified_name(ca, key, cert) == expected


def test_systemd_that_is_gone_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "systemd could not be told ('READY=1',)" in caplog.text

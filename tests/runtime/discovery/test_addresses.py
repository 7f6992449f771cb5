from __future__ import annotations

import ipaddress
import warnings

import pytest

import wool
from wool.runtime.discovery import addresses


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [("10.0.0.1:80", "10.0.0.1", 80), ("[fe80::1]:443", "fe80::1", 443), ("a.b:1", "a.b", 1)],
)
def test_split_and_join(target: str, host: str, port: int) -> None:
    assert addresses.split(target) == (host, port)
    assert addresses.join(host, port) == target


@pytest.mark.parametrize("target", ["unix:/run/s", "10.0.0.1", "10.0.0.1:http", ""])
def test_split_of_what_others_can_not_reach(target: str) -> None:
    with pytest.raises(wool.AdvertiseHostError, match="can't be reached from other hosts"):
        addresses.split(target)


async def test_worker_on_an_interface_is_advertised_there() -> None:
    assert await addresses.advertised("192.0.2.7", None) == ["192.0.2.7"]
    assert await addresses.advertised("2001:db8::7", None) == ["2001:db8::7"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_worker_on_all_interfaces_is_advertised_on_each(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    mine = ["127.0.0.1/8", "10.1.2.3/24", "::1/128", "fe80::1/64", "2001:db8::1/64"]
    monkeypatch.setattr(addresses, "interfaces", lambda: map(ipaddress.ip_interface, mine))
    assert await addresses.advertised(host, None) == ["10.1.2.3", "2001:db8::1"]


async def test_no_address_that_others_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ["127.0.0.1/8", "::1/128", "fe80::1/64"]
    monkeypatch.setattr(addresses, "interfaces", lambda: map(ipaddress.ip_interface, mine))
    with pytest.raises(wool.AdvertiseHostError, match="pass advertise_host"):
        await addresses.advertised("0.0.0.0", None)


@pytest.mark.parametrize("override", ["192.0.2.9", lambda: "192.0.2.9"], ids=["text", "callable"])
async def test_override_wins(override: str) -> None:
    for host in ("0.0.0.0", "10.0.0.1", "127.0.0.1"):
        assert await addresses.advertised(host, override) == ["192.0.2.9"]


@pytest.mark.parametrize("wrong", ["", " ", "0.0.0.0", "::", 7, None])
async def test_override_that_is_no_host(wrong: object) -> None:
    with pytest.raises(ValueError, match="advertise_host must be an address"):
        await addresses.advertised("10.0.0.1", lambda: wrong)  # type: ignore[arg-type, return-value]
    if isinstance(wrong, str):
        with pytest.raises(ValueError, match="advertise_host must be an address"):
            wool.LanDiscovery("n", advertise_host=wrong)


async def test_loopback_warns() -> None:
    with pytest.warns(wool.LoopbackAdvertisementWarning, match="only this host can reach it"):
        assert await addresses.advertised("127.0.0.1", None) == ["127.0.0.1"]
    with pytest.warns(wool.LoopbackAdvertisementWarning):
        found = await addresses.advertised("0.0.0.0", "localhost")
    assert "127.0.0.1" in found
    assert not addresses.is_wildcard(found[0])


async def test_host_without_an_address() -> None:
    with pytest.raises(wool.AdvertiseHostError, match=r"'nowhere\.invalid' has no address"):
        await addresses.advertised("0.0.0.0", "nowhere.invalid")


def test_this_host_has_interfaces() -> None:
    assert ipaddress.ip_address("127.0.0.1") in {each.ip for each in addresses.interfaces()}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["172.16.0.5", "10.0.0.5"], "10.0.0.5"),
        (["2001:db8::5", "10.0.0.5"], "10.0.0.5"),
        (["2001:db8::5", "172.16.0.5"], "2001:db8::5"),
        (["fe80::5%2", "172.16.0.5"], "172.16.0.5"),
        (["172.16.0.5", "172.17.0.5"], "172.16.0.5"),
        (["2001:db9::5", "172.16.0.5"], "172.16.0.5"),
    ],
)
def test_nearest(offered: list[str], chosen: str) -> None:
    own = [ipaddress.ip_interface(each) for each in ("10.0.0.1/24", "2001:db8::1/64")]
    with warnings.catch_warnings():
        assert addresses.nearest(offered, own) == chosen

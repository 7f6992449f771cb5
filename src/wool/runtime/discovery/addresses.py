"""Which addresses a worker is reachable at from other hosts, and which of them to take."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import warnings
from typing import TYPE_CHECKING, TypeAlias

from wool.runtime.errors import AdvertiseHostError, LoopbackAdvertisementWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def split(target: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[host]:port`.

    Raises `AdvertiseHostError` for a target that isn't one, such as a unix socket.
    """
    host, _, port = target.rpartition(":")
    if target.startswith("unix:") or not port.isdecimal():
        raise AdvertiseHostError(
            f"A worker at {target} can't be reached from other hosts: give it a host and a port"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def join(host: str, port: int) -> str:
    """As a gRPC target."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def advertised(host: str, override: str | Callable[[], str] | None) -> list[str]:
    """The addresses to announce for a worker that listens on `host`.

    Those of `override` if given; of all interfaces that other hosts may reach for a worker that
    listens on all of them. Warns of loopback. Raises `AdvertiseHostError` if there are none, and
    `ValueError` for an `override` that is no host.
    """
    if override is not None:
        host = check_host(override() if callable(override) else override)
    elif is_wildcard(host):
        found = [str(each.ip) for each in interfaces() if is_routable(each.ip)]
        if not found:
            raise AdvertiseHostError(
                f"No interface of this host has an address that others can reach, and a worker "
                f"listens on {host}: pass advertise_host"
            )
        return found
    addresses = await _resolve(host)
    if all(address.is_loopback for address in addresses):
        warn_of_loopback(host)
    return list(map(str, addresses))


def warn_of_loopback(host: str) -> None:
    warnings.warn(
        f"A worker is announced at {host}, where only this host can reach it; pass "
        "advertise_host, or have it listen on another address",
        LoopbackAdvertisementWarning,
        stacklevel=3,
    )


def check_host(host: object) -> str:
    """`host`, if it is one that can be announced; else raises `ValueError`."""
    if not isinstance(host, str) or not host.strip() or is_wildcard(host):
        raise ValueError(f"advertise_host must be an address or a host's name, got {host!r}")
    return host.strip()


def is_wildcard(host: str) -> bool:
    """Whether it stands for all interfaces."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only its own host can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_routable(address: Address) -> bool:
    """Whether another host may reach it, by that alone."""
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def interfaces() -> Iterator[Interface]:
    """The addresses of this host's interfaces, with their networks."""
    import ifaddr  # Few look at interfaces, and every pool imports this module.

    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            address = each.ip if isinstance(each.ip, str) else each.ip[0]
            yield ipaddress.ip_interface(f"{address}/{each.network_prefix}")


def multicast_interfaces() -> list[str | int]:
    """Where to send to: IPv4 addresses, and the indexes of interfaces with IPv6.

    Loopback is among them with IPv4 alone, as there it has no route for multicast with IPv6.
    """
    import ifaddr

    places: list[str | int] = []
    for adapter in ifaddr.get_adapters():
        texts = [each.ip if isinstance(each.ip, str) else each.ip[0] for each in adapter.ips]
        found = list(map(ipaddress.ip_address, texts))
        places += [str(address) for address in found if address.version == 4]
        outer = any(address.version == 6 and not address.is_loopback for address in found)
        if outer and adapter.index is not None:
            places.append(adapter.index)
    return places


def nearest(addresses: Sequence[str], own: Iterable[Interface]) -> str:
    """The one to call a worker at: in a network of our own if possible, IPv4 rather than IPv6."""
    networks = [each.network for each in own]

    def distance(text: str) -> tuple[bool, bool, int]:
        address = ipaddress.ip_address(text)
        attached = any(
            address.version == network.version and address in network for network in networks
        )
        return not attached, address.is_link_local, address.version

    return min(addresses, key=distance)


async def _resolve(host: str) -> list[Address]:
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise AdvertiseHostError(f"The host {host!r} has no address: {exc}") from exc
    return [
        ipaddress.ip_address(address) for address in dict.fromkeys(each[4][0] for each in found)
    ]

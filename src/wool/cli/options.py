"""The options that commands share, and what becomes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from wool.cli.places import FORMS, NAME, Place, together
from wool.runtime.worker.auth import WorkerCredentials, WorkerCredentialsProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wool.runtime.discovery.base import DiscoveryLike

F = TypeVar("F", bound="Callable[..., Any]")

SETTINGS: Final = {"auto_envvar_prefix": "WOOL", "max_content_width": 100}
"""Of every command's context."""

FRESH_FOR: Final = 60.0
"""Seconds after which certificates are read again for connections that are opened."""

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r}: {exc}") from exc


def port(text: str) -> int:
    if "://" in text:
        raise click.BadParameter(
            f"{text!r} is no port. Kubernetes sets such a variable for a service of that name; "
            "enableServiceLinks: false in the pod's specification prevents it."
        )
    if not text.isdecimal() or int(text) > 65535:
        raise click.BadParameter(f"{text!r}: expected a number in 0..65535")
    return int(text)


def size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or not int(found[1]):
        raise click.BadParameter(f"{text!r}: expected bytes, or such as 512M or 2G")
    return int(found[1]) * int(1024 ** " kmgt".index(found[2] or " "))


def tag(text: str) -> str:
    if not re.fullmatch(r"[^\s,]+", text):
        raise click.BadParameter(
            f"{text!r}: expected a tag without spaces and commas, which stand between tags"
        )
    return text


def places(function: F) -> F:
    """`--discovery` and `--join`."""
    for option in (
        click.option(
            "--join",
            metavar="NAMESPACE",
            multiple=True,
            help="A pool on this machine, by its namespace. Repeatable.",
        ),
        click.option(
            "--discovery",
            type=place,
            multiple=True,
            metavar="PLACE",
            help=f"Where workers meet: {FORMS}. Repeatable. [default: local:{NAME}]",
        ),
    ):
        function = option(function)
    return function


def tls(function: F) -> F:
    """`--ca`, `--key`, `--cert`, `--no-mutual` and `--identity`."""
    for option in (
        click.option("--identity", metavar="NAME", help="The name that certificates are for."),
        click.option("--no-mutual", is_flag=True, help="Clients need no certificate."),
        click.option("--cert", type=FILE, help="The certificate, in PEM."),
        click.option("--key", type=FILE, help="Its private key, in PEM."),
        click.option("--ca", type=FILE, help="The certificate of the authority, in PEM: use TLS."),
    ):
        function = option(function)
    return function


def waiting(function: F) -> F:
    """`--wait`."""
    option = click.option(
        "--wait",
        type=click.FloatRange(0, 3600, min_open=True),
        metavar="SECONDS",
        help="How long to look for workers. [default: 0.3 on this machine, else 2]",
    )
    return option(function)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the options of TLS say."""

    ca: Path | None
    key: Path | None
    cert: Path | None
    no_mutual: bool
    identity: str | None

    def provider(self, *, serving: bool = False) -> WorkerCredentialsProvider | None:
        """None without. A client needs no key if workers don't ask for one."""
        files = self.files
        if self.ca is None and self.key is None and self.cert is None:
            if self.no_mutual or self.identity is not None:
                option = "--no-mutual" if self.no_mutual else "--identity"
                raise click.UsageError(f"{option} needs TLS: give --ca, --key and --cert")
            return None
        if files is not None:
            factory = partial(WorkerCredentials.from_files, *files, mutual=not self.no_mutual)
        elif self.ca is not None and self.no_mutual and not serving:
            factory = partial(_authority_alone, self.ca)
        else:
            raise click.UsageError("TLS takes --ca, --key and --cert, all three")
        try:
            return WorkerCredentialsProvider(
                factory, peers=self.identity, reloadable=True, fresh_for=FRESH_FOR
            )
        except (OSError, ValueError) as exc:
            raise click.UsageError(f"--ca, --key, --cert: {exc}") from exc

    @property
    def files(self) -> tuple[Path, Path, Path] | None:
        """Authority, key and certificate; None if they are not all there."""
        if self.ca is None or self.key is None or self.cert is None:
            return None
        return self.ca, self.key, self.cert


def _authority_alone(ca: Path) -> WorkerCredentials:
    return WorkerCredentials(ca.read_bytes(), b"", b"", mutual=False)


def chosen(discovery: Sequence[Place], join: Sequence[str], *, default: bool = True) -> list[Place]:
    """The places that were given, or else, if `default`, the one for when none is."""
    given = [*discovery, *(Place(f"local:{name}", "local", name) for name in join)]
    return given or ([Place.parse(f"local:{NAME}")] if default else [])


def discover(places: Sequence[Place], **settings: Any) -> DiscoveryLike:
    """One discovery of all places. Raises `BadParameter` for one that can't be had."""
    return together([_make(place, settings) for place in places])


def _make(place: Place, settings: dict[str, Any]) -> DiscoveryLike:
    try:
        return place.discovery(**settings)
    except (ValueError, ImportError) as exc:
        raise click.BadParameter(f"{place}: {exc}", param_hint="--discovery") from exc

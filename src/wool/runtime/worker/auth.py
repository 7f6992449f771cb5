"""TLS material of workers and their clients, its renewal, and which workers it is for."""

from __future__ import annotations

import inspect
import logging
import math
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import grpc

from wool.runtime.errors import IneffectivePeersWarning
from wool.runtime.serializer import to_bytes

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType
    from typing import Self

    from wool.runtime.worker.metadata import WorkerMetadata

Peers: TypeAlias = str | Iterable[str] | Callable[[str | None], bool]

Credentials: TypeAlias = "WorkerCredentials | WorkerCredentialsProvider"

logger = logging.getLogger("wool.credentials")


@dataclass(frozen=True)
class WorkerCredentials:
    """PEM-encoded certificates and key: one set for a worker and for clients of it.

    `ca_cert` is the authority that both sides trust. With `mutual`, clients identify themselves
    by the same key and certificate.
    """

    ca_cert: bytes
    worker_key: bytes = field(repr=False)
    worker_cert: bytes
    mutual: bool = True

    @classmethod
    def from_files(
        cls,
        ca_path: str | PathLike[str],
        key_path: str | PathLike[str],
        cert_path: str | PathLike[str],
        *,
        mutual: bool = True,
    ) -> WorkerCredentials:
        """Read them from PEM files.

        Raises `OSError` or `ValueError`, which name the file: it can't be read, isn't what it
        should be, or the key is another certificate's.
        """
        paths = ca_path, key_path, cert_path
        checked: tuple[bytes, ...] = ()
        while checked != (content := tuple(map(_read, paths))):  # They may be replaced meanwhile.
            _check(*paths)
            checked = content
        ca, key, cert = checked
        return cls(ca, key, cert, mutual)

    def as_provider(self, *, peers: Peers | None = None) -> WorkerCredentialsProvider:
        """A provider of these, for the workers that `peers` tells; see there."""
        return WorkerCredentialsProvider(lambda: self, peers=peers)

    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.worker_key, self.worker_cert)],
            root_certificates=self.ca_cert if self.mutual else None,
            require_client_auth=self.mutual,
        )

    def server_certificate_configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for `grpc.dynamic_ssl_server_credentials`."""
        return grpc.ssl_server_certificate_configuration(
            [(self.worker_key, self.worker_cert)],
            root_certificates=self.ca_cert if self.mutual else None,
        )

    def client_credentials(self) -> grpc.ChannelCredentials:
        if not self.mutual:
            return grpc.ssl_channel_credentials(self.ca_cert)
        return grpc.ssl_channel_credentials(self.ca_cert, self.worker_key, self.worker_cert)


def _read(path: str | PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _check(
    ca_path: str | PathLike[str], key_path: str | PathLike[str], cert_path: str | PathLike[str]
) -> None:
    """What gRPC does not say when it can't use them."""
    import ssl  # Workers get what has been checked.

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for path in (ca_path, cert_path):
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as exc:
            raise ValueError(f"{os.fspath(path)!r} holds no PEM certificate: {exc}") from exc
    try:
        context.load_cert_chain(cert_path, key_path, password="")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(
                f"The key in {os.fspath(key_path)!r} is not that of the certificate in "
                f"{os.fspath(cert_path)!r}"
            ) from exc
        raise ValueError(
            f"{os.fspath(key_path)!r} holds no PEM private key, or one with a password: {exc}"
        ) from exc


class WorkerCredentialsProvider:
    """Where workers and their clients have their `WorkerCredentials` from.

    `factory` returns them. It is called at once, and if they are `reloadable`, again whenever a
    connection is opened, on either side, more than `fresh_for` seconds after the last time. If it
    fails then, or changes what `mutual` says, that is logged, and what it returned before is used.

    `peers` tells which workers may be called: by the name of their `identity`, one of several
    names, or a function of it (of None for a worker without). A worker's certificate must be for
    its identity then, instead of its address. Without `peers`, identities don't matter.

    What `factory` returns is used as it is; `WorkerCredentials.from_files` checks what it reads. It
    can be pickled, by value where that is needed, to be given to workers. Raises what `factory`
    raises, `TypeError` if that doesn't return credentials, or `peers` are none of those, and
    `ValueError` for `fresh_for` that is negative.
    """

    def __init__(
        self,
        factory: Callable[[], WorkerCredentials],
        *,
        peers: Peers | None = None,
        reloadable: bool = False,
        fresh_for: float = 1.0,
    ) -> None:
        if not 0 <= fresh_for < math.inf:
            raise ValueError(f"fresh_for must be a number of seconds, 0 or more, got {fresh_for}")
        self.peers = _check_peers(peers)
        self.reloadable = reloadable
        self.fresh_for = fresh_for
        self._factory = factory
        self._renewing = threading.Lock()
        self._credentials = self._make()
        self._fresh_until = time.monotonic() + fresh_for

    def __repr__(self) -> str:
        kind = "reloadable" if self.reloadable else "fixed"
        return f"<WorkerCredentialsProvider {kind}, for {self.describe_peers()}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkerCredentialsProvider):
            return NotImplemented
        if self.reloadable or other.reloadable:
            return self is other
        return (self._credentials, self.peers) == (other._credentials, other.peers)

    def __hash__(self) -> int:
        return id(self) if self.reloadable else hash((self._credentials, self.peers))

    def __reduce__(self) -> tuple[Any, ...]:
        factory = self._factory if self.reloadable else None
        try:
            content = to_bytes((factory, self.peers))
        except (AttributeError, TypeError, pickle.PicklingError) as exc:
            raise TypeError(f"{self!r} can't be pickled, to be given to workers: {exc}") from exc
        return _restore, (content, self.reloadable, self.fresh_for, self._credentials)

    @classmethod
    def coerce(cls, credentials: WorkerCredentials | Self | None) -> Self | None:
        """A provider of these credentials; one as it is; None for None."""
        if credentials is None or isinstance(credentials, cls):
            return credentials
        if not isinstance(credentials, WorkerCredentials):
            raise TypeError(
                "credentials must be WorkerCredentials, a WorkerCredentialsProvider or None, not "
                f"of type {type(credentials).__name__}"
            )
        return cls(lambda: credentials)

    @property
    def credentials(self) -> WorkerCredentials:
        """Those for a connection that is opened now. May take as long as the factory does."""
        # Who comes while they are being renewed has those from before.
        if (
            self.reloadable
            and time.monotonic() >= self._fresh_until
            and self._renewing.acquire(blocking=False)
        ):
            try:
                self._renew()
            finally:
                self._renewing.release()
        return self._credentials

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a worker, which presents what is current to each client that connects."""
        first = self.credentials
        if not self.reloadable:
            return first.server_credentials()
        presented = first

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal presented
            if (current := self.credentials) == presented:
                return None
            presented = current
            return current.server_certificate_configuration()

        return grpc.dynamic_ssl_server_credentials(
            first.server_certificate_configuration(),
            cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # None: no change
            first.mutual,
        )

    def accepts_peer(self, identity: str | None) -> bool:
        """Whether a worker of that identity may be called. A function that raises means no."""
        if self.peers is None:
            return True
        if not callable(self.peers):
            return identity in self.peers
        try:
            return bool(self.peers(identity))
        except Exception:
            logger.exception(
                "%r can't tell whether to call a worker of identity %r", self, identity
            )
            return False

    def name_of(self, metadata: WorkerMetadata) -> str | None:
        """The name that a worker's certificate must be for; None for its address."""
        return None if self.peers is None else metadata.identity

    def describe_peers(self) -> str:
        """Which workers may be called, in words."""
        if self.peers is None:
            return "any worker"
        if callable(self.peers):
            return f"workers whose identity satisfies {self.peers!r}"
        return f"workers of identity {' or '.join(map(repr, sorted(self.peers)))}"

    def _make(self) -> WorkerCredentials:
        credentials = self._factory()
        if not isinstance(credentials, WorkerCredentials):
            kind = type(credentials).__name__  # Not the value, which may be a key.
            raise TypeError(f"{self._factory!r} must return WorkerCredentials, got a {kind}")
        return credentials

    def _renew(self) -> None:
        try:
            renewed = self._make()
            if renewed.mutual != self._credentials.mutual:
                raise ValueError(f"mutual can't change to {renewed.mutual} while they are in use")
        except Exception as exc:
            logger.warning("Credentials were not renewed; those from before are used: %s", exc)
        else:
            self._credentials = renewed
        self._fresh_until = time.monotonic() + self.fresh_for


def _check_peers(
    peers: Peers | None,
) -> frozenset[str] | Callable[[str | None], bool] | None:
    if callable(peers):
        if inspect.iscoroutinefunction(peers):
            raise TypeError(f"peers must be names or a function that returns a bool, got {peers!r}")
        hash(peers)
        return peers
    if peers is None:
        return None
    names = frozenset({peers} if isinstance(peers, str) else peers)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"peers must be names or a function, got {peers!r}")
    if named := frozenset(filter(None, map(str.strip, names))):
        return named
    warnings.warn(
        f"peers={peers!r} names nobody, so workers of any identity may be called; leave it out if "
        "that is intended",
        IneffectivePeersWarning,
        stacklevel=3,
    )
    return None


def _restore(
    content: bytes, reloadable: bool, fresh_for: float, credentials: WorkerCredentials
) -> WorkerCredentialsProvider:
    factory, peers = pickle.loads(content)
    provider = WorkerCredentialsProvider(
        lambda: credentials, peers=peers, reloadable=reloadable, fresh_for=fresh_for
    )
    if factory is not None:
        provider._factory = factory
    return provider


_current: ContextVar[Credentials | None] = ContextVar("credentials", default=None)


class CredentialContext:
    """Makes `credentials` those of every proxy that is given none, inside a `with` block."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._token: Token[Credentials | None] | None = None

    def __enter__(self) -> CredentialContext:
        if self._token is not None:
            raise RuntimeError("CredentialContext is already entered; make another one")
        self._token = _current.set(self._credentials)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)
        self._token = None

    @staticmethod
    def current() -> Credentials | None:
        return _current.get()

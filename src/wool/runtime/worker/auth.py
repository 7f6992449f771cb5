"""TLS material of workers and their clients."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType


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
        ca, key, cert = map(_read, (ca_path, key_path, cert_path))
        _check(ca_path, key_path, cert_path)
        return cls(ca, key, cert, mutual)

    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.worker_key, self.worker_cert)],
            root_certificates=self.ca_cert if self.mutual else None,
            require_client_auth=self.mutual,
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


_current: ContextVar[WorkerCredentials | None] = ContextVar("credentials", default=None)


class CredentialContext:
    """Makes `credentials` those of every proxy that is given none, inside a `with` block."""

    def __init__(self, credentials: WorkerCredentials | None) -> None:
        self._credentials = credentials
        self._token: Token[WorkerCredentials | None] | None = None

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
    def current() -> WorkerCredentials | None:
        return _current.get()

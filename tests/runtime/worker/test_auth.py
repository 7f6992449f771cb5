from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

import grpc
import pytest
import trustme

from wool import WorkerCredentials
from wool.runtime.worker.auth import CredentialContext

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def credentials() -> WorkerCredentials:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    return WorkerCredentials(
        authority.cert_pem.bytes(),
        certificate.private_key_pem.bytes(),
        certificate.cert_chain_pems[0].bytes(),
    )


def test_credentials_keep_the_key_to_themselves() -> None:
    shown = repr(WorkerCredentials(b"the ca", b"the key", b"the cert"))
    assert "the ca" in shown
    assert "the key" not in shown


@pytest.fixture
def paths(tmp_path: Path, credentials: WorkerCredentials) -> list[Path]:
    paths = [tmp_path / name for name in ("ca.pem", "key.pem", "cert.pem")]
    contents = (credentials.ca_cert, credentials.worker_key, credentials.worker_cert)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("which", [0, 1, 2])
def test_file_that_is_not_there_is_named(paths: list[Path], which: int) -> None:
    paths[which].unlink()
    with pytest.raises(FileNotFoundError, match=paths[which].name):
        WorkerCredentials.from_files(*paths)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_file_that_is_malformed_is_named(paths: list[Path], which: int, content: bytes) -> None:
    paths[which].write_bytes(content)
    with pytest.raises(ValueError, match=rf"{paths[which].name}' holds no PEM"):
        WorkerCredentials.from_files(*paths)


def test_key_of_another_certificate_is_named(paths: list[Path]) -> None:
    other = trustme.CA().issue_cert("localhost")
    paths[1].write_bytes(other.private_key_pem.bytes())
    with pytest.raises(
        ValueError, match=r"key\.pem' is not that of the certificate in .*cert\.pem"
    ):
        WorkerCredentials.from_files(*paths)


def test_credentials_from_files(tmp_path: Path, credentials: WorkerCredentials) -> None:
    paths = [tmp_path / name for name in ("ca.pem", "key.pem", "cert.pem")]
    contents = (credentials.ca_cert, credentials.worker_key, credentials.worker_cert)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert WorkerCredentials.from_files(*paths) == credentials
    assert WorkerCredentials.from_files(*map(str, paths), mutual=False).mutual is False
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"key\.pem"):
        WorkerCredentials.from_files(*paths)


@pytest.mark.parametrize("mutual", [True, False])
def test_credentials_for_grpc(credentials: WorkerCredentials, mutual: bool) -> None:
    material = WorkerCredentials(
        credentials.ca_cert, credentials.worker_key, credentials.worker_cert, mutual
    )
    assert isinstance(material.server_credentials(), grpc.ServerCredentials)
    assert isinstance(material.client_credentials(), grpc.ChannelCredentials)


def test_credential_context_is_scoped() -> None:
    inner = WorkerCredentials(b"inner", b"", b"")
    outer = WorkerCredentials(b"outer", b"", b"")
    assert CredentialContext.current() is None
    with CredentialContext(outer):
        assert CredentialContext.current() is outer
        with CredentialContext(inner):
            assert CredentialContext.current() is inner
            assert contextvars.copy_context().run(CredentialContext.current) is inner
            with CredentialContext(None):
                assert CredentialContext.current() is None
        assert CredentialContext.current() is outer
    assert CredentialContext.current() is None


def test_credential_context_rejects_re_entry() -> None:
    """A94."""
    context = CredentialContext(WorkerCredentials(b"", b"", b""))
    with context:
        with pytest.raises(RuntimeError, match="already entered"):
            context.__enter__()
        assert CredentialContext.current() is not None
    assert CredentialContext.current() is None
    with context:
        assert CredentialContext.current() is not None

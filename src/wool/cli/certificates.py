"""Which names a certificate is for."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

FLIGHTS: Final = 4
"""Of messages in a handshake, at most."""


def certified_name(ca: Path, key: Path, cert: Path) -> str:
    """A name that the certificate is for, by a handshake with itself.

    Raises `ssl.SSLError` if the authority has not signed it, `ValueError` if it is for no name.
    """
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    calling.check_hostname = False
    calling.load_verify_locations(ca)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = calling.wrap_bio(back, there)
    server = serving.wrap_bio(there, back, server_side=True)
    for _ in range(FLIGHTS):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate: dict[str, Any] = client.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    for kind, name in sorted(names, key=lambda each: each[0] != "DNS"):
        if kind in ("DNS", "IP Address"):
            return str(name)
    raise ValueError(f"the certificate in {str(cert)!r} is for no name or address")

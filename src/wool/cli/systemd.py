"""Tells systemd, over the socket that it names in `$NOTIFY_SOCKET`, how a service is."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger("wool.cli")


def notify(*assignments: str) -> None:
    """Such as `READY=1`. Nothing without systemd. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):  # In the abstract namespace.
        address = "\0" + address[1:]
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall("\n".join(assignments).encode())
    except OSError as exc:
        logger.warning("systemd could not be told %s: %s", assignments, exc)

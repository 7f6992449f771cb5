"""A worker's metadata as the strings of a DNS text record."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from wool import protocol
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.metadata import WorkerMetadata, decode_extra, encode_extra

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

LONGEST: Final = 255
"""Bytes in one string, `key=value` (RFC 1035, section 3.3)."""


class ForeignRecord(ValueError):
    """The record of a worker that speaks another wire format, as the published package's do."""


def encode(metadata: WorkerMetadata) -> dict[str, str]:
    """All but the uid and the address. What is as usual is left out.

    Raises `ValueError`, which names the field, if one is too long, and `TypeError` if `extra` holds
    what JSON can't carry.
    """
    fields = {
        "wire": str(protocol.WIRE),
        "pid": str(metadata.pid),
        "version": metadata.version,
        "secure": "true" if metadata.secure else "false",
    }
    if metadata.tags:
        fields["tags"] = _dump(sorted(metadata.tags))
    if metadata.identity is not None:
        fields["identity"] = metadata.identity
    if metadata.extra:
        fields["extra"] = encode_extra(metadata.extra)
    if metadata.options is not None:
        usual = asdict(ChannelOptions())
        options = asdict(metadata.options)
        fields["options"] = _dump({k: v for k, v in options.items() if v != usual[k]})
    sizes = {name: len(f"{name}={value}".encode()) for name, value in fields.items()}
    for name, size in sizes.items():
        if size > LONGEST:
            raise ValueError(
                f"The {name} of worker {metadata.uid} take {size} bytes of the {LONGEST} that a "
                "DNS text string holds: announce less on the network"
            )
    return fields


def decode(uid: UUID, address: str, fields: Mapping[bytes, bytes | None]) -> WorkerMetadata:
    """Raises `ForeignRecord`, or another `ValueError` that says what is wrong."""
    texts = {key.decode(): (value or b"").decode() for key, value in fields.items()}
    wire = texts.get("wire")
    if wire != str(protocol.WIRE):
        raise ForeignRecord(f"wire format {wire!r}, expected '{protocol.WIRE}'")
    if missing := {"pid", "version"} - texts.keys():
        raise ValueError(f"no {' and no '.join(sorted(missing))}")
    return WorkerMetadata(
        uid=uid,
        address=address,
        pid=int(texts["pid"]),
        version=texts["version"],
        tags=_strings(texts.get("tags", "[]")),
        extra=decode_extra(texts.get("extra", "{}")),
        secure=texts.get("secure") == "true",
        options=_options(texts["options"]) if "options" in texts else None,
        identity=texts.get("identity"),
    )


def _strings(text: str) -> frozenset[str]:
    tags = json.loads(text)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"tags must be a JSON list of strings, got {text}")
    return frozenset(tags)


def _options(text: str) -> ChannelOptions:
    try:
        return ChannelOptions(**json.loads(text))
    except TypeError as exc:
        raise ValueError(f"options are not as expected: {text}") from exc


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))

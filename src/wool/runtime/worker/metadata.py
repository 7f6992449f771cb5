"""How a worker describes itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from wool import protocol
from wool.runtime.worker.base import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class WorkerMetadata:
    """A worker as it is announced: who it is, where it listens, what it speaks.

    `address` is a gRPC target (`unix:/path` or `host:port`), `version` that of its wool, `tags`
    and `extra` are its user's, `secure` tells that it wants TLS. `identity` is the name that its
    certificate is for besides its address, if any. Hashed by `uid`.
    """

    uid: UUID
    address: str
    pid: int
    version: str
    tags: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    secure: bool = False
    options: ChannelOptions | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", (self.identity or "").strip() or None)
        object.__setattr__(self, "tags", frozenset(self.tags))
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    def __hash__(self) -> int:
        return hash(self.uid)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (self.to_protobuf().SerializeToString(),)

    def to_protobuf(self) -> protocol.WorkerMetadata:
        """As a message. Raises `TypeError` if `extra` holds what JSON can't carry."""
        return protocol.WorkerMetadata(
            uid=self.uid.bytes,
            address=self.address,
            pid=self.pid,
            version=self.version,
            tags=sorted(self.tags),
            extra=encode_extra(self.extra) if self.extra else "",
            secure=self.secure,
            options=self.options.to_protobuf() if self.options else None,
            wire=protocol.WIRE,
            identity=self.identity or "",
        )

    @classmethod
    def from_protobuf(cls, message: protocol.WorkerMetadata) -> WorkerMetadata:
        """From a message. Raises `ValueError` if it is malformed or speaks another wire format."""
        if message.wire != protocol.WIRE:
            raise ValueError(f"wire format {message.wire}, expected {protocol.WIRE}")
        return cls(
            uid=UUID(bytes=message.uid),
            address=message.address,
            pid=message.pid,
            version=message.version,
            tags=frozenset(message.tags),
            extra=decode_extra(message.extra) if message.extra else {},
            secure=message.secure,
            options=(
                ChannelOptions.from_protobuf(message.options)
                if message.HasField("options")
                else None
            ),
            identity=message.identity or None,
        )


def check_tags(tags: Iterable[str]) -> frozenset[str]:
    """`tags` as a set. Raises `ValueError` if they are not strings, or one alone."""
    if not isinstance(tags, str):
        with suppress(TypeError):
            checked = frozenset(tags)
            if all(isinstance(tag, str) for tag in checked):
                return checked
    raise ValueError(f"tags must be several strings, such as {{'gpu'}}, got {tags!r}")


def check_identity(identity: object) -> None:
    """Raises `TypeError` or `ValueError` if it is neither a name nor None."""
    if identity is None:
        return
    if not isinstance(identity, str):
        raise TypeError(f"identity must be a name, or None, got {identity!r}")
    if not identity.strip():
        raise ValueError("identity must be a name, or None, not blank")


def encode_extra(extra: Mapping[str, Any]) -> str:
    """As JSON. Raises `TypeError` if it holds what JSON can't carry."""
    import json  # Few workers have anything extra.

    return json.dumps(dict(extra))


def decode_extra(text: str) -> dict[str, Any]:
    import json

    try:
        extra = json.loads(text)
    except RecursionError as exc:
        raise ValueError("extra is nested too deeply") from exc
    if not isinstance(extra, dict):
        raise ValueError(f"extra must be a JSON object, got {text}")
    return extra


def _from_bytes(data: bytes) -> WorkerMetadata:
    return WorkerMetadata.from_protobuf(protocol.WorkerMetadata.FromString(data))

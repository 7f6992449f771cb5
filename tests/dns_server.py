"""A small authoritative name server of the tests' own, on a free port of loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class NameServer(asyncio.DatagramProtocol):
    """Answers with `records`, by name and type, over UDP; with `failure`, if set, to everything.

    With `silent` it doesn't answer. `asked` counts the questions.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.failure: dns.rcode.Rcode | None = None
        self.silent = False
        self.asked = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.port = self._transport.get_extra_info("sockname")[1]
        self.address = f"127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.close()
        await asyncio.sleep(0)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        if not self.silent:
            answer = self._answer(dns.message.from_wire(data)).to_wire()
            self._transport.sendto(answer, addr)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True)
        if self.failure is not None:
            response.set_rcode(self.failure)
            return response
        if name not in {known for known, _ in self.records}:
            response.set_rcode(dns.rcode.NXDOMAIN)
        kind = dns.rdatatype.to_text(question.rdtype)
        found = self.records.get((name, kind), [])
        if found:
            response.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, *found))
        return response

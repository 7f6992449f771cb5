"""What a session's worker is sent once, and told by number from then on: routines and proxies."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from wool.runtime.worker.framing import DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from wool import protocol
    from wool.runtime.routine.task import Task

    Define = Callable[[protocol.Definition, bytes, bool], None]


class Definitions:
    """What the worker knows, the least recently used first, which is the next to be replaced."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def size_in(self, task: Task) -> int:
        """Bytes of what would have to be sent with a task."""
        size = 0
        for content in (task.definition.data, task.proxy_dump):
            if content not in self._numbers:
                size += len(content)
        return size

    def write(self, message: protocol.Task, task: Task) -> None:
        """Put into `message` all of a task but its arguments."""
        _write(message, task, self._define)

    def _define(self, message: protocol.Definition, content: bytes, reusable: bool) -> None:
        number = self._numbers.get(content)
        if number is not None:
            self._numbers.move_to_end(content)
        else:
            number = len(self._numbers) + 1
            if number > DEFINITIONS:
                number = self._numbers.popitem(last=False)[1]
            self._numbers[content] = number
            message.content = content
            message.reusable = reusable
        message.number = number


def finish_large(task: Task, frame: protocol.Request) -> None:
    """Make `frame` the last of a task whose arguments have been sent in chunks.

    Without numbers: by the time it leaves, those known now may stand for something else.
    """
    _write(frame.task, task, _define_for_once)
    frame.task.arguments.chunked = True


def _define_for_once(message: protocol.Definition, content: bytes, reusable: bool) -> None:
    message.content = content
    message.reusable = reusable


def _write(message: protocol.Task, task: Task, define: Define) -> None:
    task.write_header(message)
    if task.definition.data:
        define(message.callable, *task.definition)
    if task.proxy_dump:
        define(message.proxy, task.proxy_dump, True)
    else:
        message.proxy_error = task.proxy_error

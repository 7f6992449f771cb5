"""A process of its own that announces workers: `python -m tests.runtime.discovery.announcer NAME`.

Does what it is told on standard input, a line each, and answers each with a line.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from wool.runtime.discovery.local import LocalDiscovery

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from wool.runtime.worker.metadata import WorkerMetadata

ROOT = Path(__file__).parents[3]


class Announcer:
    """The parent's side of it."""

    def __init__(self, namespace: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.discovery.announcer", namespace],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stdin = cast("IO[str]", self._process.stdin)
        self._stdout = cast("IO[str]", self._process.stdout)
        assert self._stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def publish(self, type: str, *workers: WorkerMetadata) -> None:
        self.ask("publish", type, list(workers))

    def ask(self, *request: Any) -> str:
        self.start(*request)
        return self.wait()

    def wait(self) -> str:
        return self._stdout.readline().strip()

    def start(self, *request: Any) -> None:
        """Ask without waiting for the answer."""
        self._stdin.write(f"{pickle.dumps(request).hex()}\n")
        self._stdin.flush()

    def end(self) -> str:
        """End it the regular way; what it wrote to standard error."""
        return self._process.communicate()[1]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def main(namespace: str) -> None:
    async with LocalDiscovery.Publisher(namespace) as publisher:
        answer("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            match pickle.loads(bytes.fromhex(line)):
                case "publish", type, workers:
                    for worker in workers:
                        await publisher.publish(type, worker)
                    answer("done")
                case ("fork",):
                    answer(fork())


def answer(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fork() -> int:
    """A child that does nothing, and ends with the standard input that it shares."""
    child = os.fork()
    if child == 0:
        threading.Event().wait(60)
        os._exit(0)
    return child


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

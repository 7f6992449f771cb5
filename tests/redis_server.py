"""A Redis server of the tests' own, on a free port of loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

COMMAND = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(COMMAND is None, reason="there is no redis-server here")

START_TIMEOUT = 30.0
"""Seconds."""


class RedisServer:
    """Runs inside a `with` block, without keeping anything on disk."""

    def __init__(self, *settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        assert COMMAND is not None
        command = [COMMAND, "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        # It ends when its input does, so also with this process.
        bound = ["sh", "-c", '"$@" & read -r _; kill -9 $!; wait', "sh", *command, *self._settings]
        self.process = subprocess.Popen(
            bound, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.AuthenticationError:
                    return
                except redis.ConnectionError:
                    if time.monotonic() > deadline or self.process.poll() is not None:
                        raise
                    time.sleep(0.01)

    def stop(self) -> None:
        """With what it holds."""
        if self.process is not None:
            self.process.communicate()
            self.process = None

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

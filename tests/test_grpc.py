from __future__ import annotations

import json
import os
import subprocess
import sys

USE = """
import asyncio, json, os
import wool, grpc.aio

async def use():
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        await channel.unary_unary("/a/b")(b"")

try:
    asyncio.run(use())
except grpc.aio.AioRpcError:
    pass
print(json.dumps({name: value for name, value in os.environ.items() if name.startswith("GRPC_")}))
"""


def use(**environment: str) -> tuple[dict[str, str], str]:
    """What gRPC's environment is after its use, and what was told on stderr."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=rest | environment, capture_output=True, check=True
    )
    return json.loads(done.stdout), done.stderr.decode()


def test_grpc_takes_our_settings_and_leaves_the_environment_alone() -> None:
    assert use() == ({}, "")


def test_settings_of_the_environment_win() -> None:
    environment, told = use(GRPC_VERBOSITY="DEBUG", GRPC_TRACE="no_such_thing")
    assert environment == {"GRPC_VERBOSITY": "DEBUG", "GRPC_TRACE": "no_such_thing"}
    assert "no_such_thing" in told

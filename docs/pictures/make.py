"""Makes `top.svg`: what `wool top` shows of workers that run something.

In the project's directory: `python docs/pictures/make.py`, in an environment for development.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

import wool
from wool.cli.finding import Finder
from wool.cli.top import Top
from wool.cli.view import View

PICTURE = Path(__file__).with_name("top.svg")
PLACE = "local:farm"
WIDTH, HEIGHT = 112, 34
WARM_UP = 8.0
"""Seconds that the workers have something to do before the picture is taken."""


@wool.routine
async def thumbnail(number: int) -> int:
    await asyncio.sleep(random.uniform(0.005, 0.05))
    if number % 200 == 0:
        raise ValueError(f"picture {number} is damaged")
    return sum(i * i for i in range(2_000))


@wool.routine(tags={"gpu"})
async def train(epochs: int) -> None:
    for _ in range(epochs):
        await one_epoch()


async def one_epoch() -> None:
    await asyncio.sleep(60)


async def load() -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(train(100))
        async with wool.map(
            thumbnail, range(1_000_000), concurrency=24, ordered=False, return_exceptions=True
        ) as results:
            async for _ in results:
                pass


async def take() -> None:
    discovery = wool.LocalDiscovery(PLACE.partition(":")[2])
    view = View(PLACE)
    top = Top(Finder(discovery, None, 1.0), view, 1.0)
    async with wool.WorkerPool(lease=8, discovery=discovery):
        tasks = [asyncio.create_task(load()), asyncio.create_task(top.follow())]
        await asyncio.sleep(WARM_UP)
        await top.look()
        view.press("j")
        view.press("t")
        await asyncio.sleep(1)
        await top.look()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(view.render(HEIGHT))
    svg = console.export_svg(title=f"wool top --discovery {PLACE}")
    # No fonts from elsewhere: what shows the picture has one of its own.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL) + "\n")


def main() -> None:
    with ExitStack() as stack:
        for tag, count in (("cpu", 4), ("gpu", 2)):
            command = [sys.executable, "-m", "wool", "worker", "--workers", str(count)]
            options = ["--discovery", PLACE, "--host", "localhost", "--tag", tag]
            process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            assert process.stdout is not None
            process.stdout.readline()
        asyncio.run(take())


if __name__ == "__main__":
    main()

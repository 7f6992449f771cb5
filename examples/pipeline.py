"""A small pipeline: lines of a log are read as they are needed, parsed in workers, and added up."""

import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import wool

LINES = 20_000
BATCH = 500


@wool.routine
async def parse(lines: list[str]) -> tuple[Counter[str], int]:
    """The bytes sent for each path, and how many lines are broken."""
    sent, broken = Counter[str](), 0
    for line in lines:
        try:
            record = json.loads(line)
            sent[record["path"]] += record["bytes"]
        except (ValueError, KeyError):
            broken += 1
    return sent, broken


def batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """Many lines to a call: one takes far less time to parse than to send."""
    iterator = iter(lines)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def write_log(path: Path) -> None:
    """The same one every time; each hundredth line is cut off."""
    generator = random.Random(1)
    with path.open("w", encoding="utf-8") as log:
        for number in range(LINES):
            page = generator.choice(["/", "/fleece", "/yarn", "/loom"])
            line = json.dumps({"path": page, "bytes": generator.randint(200, 20_000)})
            log.write(f"{line[:10] if number % 100 == 0 else line}\n")


async def main() -> None:
    total, broken, calls = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "access.log"
        await asyncio.to_thread(write_log, path)
        with path.open(encoding="utf-8") as log:
            async with (
                wool.WorkerPool(size=2),
                wool.map(parse, batches(log), ordered=False, concurrency=8) as results,
            ):
                async for sent, bad in results:
                    total += sent
                    broken += bad
                    calls += 1
    print(f"{LINES:,} lines in {calls} calls, {broken} of them broken")
    for page, size in total.most_common():
        print(f"  {page}: {size:,} bytes")


asyncio.run(main())

"""Word counts over a folder of text files, each shown as soon as it is there."""

import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path

import wool

FILES = 12
WORDS = ("sheep", "wool", "yarn", "loom", "thread", "spindle", "weft", "warp", "felt", "skein")


@wool.routine
async def count_words(path: Path) -> tuple[str, Counter[str]]:
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    return path.name, Counter(text.split())


def write_texts(folder: Path) -> list[Path]:
    """Files of different sizes, the same ones every time."""
    generator = random.Random(1)
    paths = [folder / f"text-{number:02}.txt" for number in range(FILES)]
    for path in paths:
        words = generator.choices(
            WORDS, weights=range(len(WORDS), 0, -1), k=generator.randint(1_000, 200_000)
        )
        path.write_text(" ".join(words), encoding="utf-8")
    return paths


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = await asyncio.to_thread(write_texts, Path(folder))
        total = Counter[str]()
        async with wool.WorkerPool(size=2):
            for count in asyncio.as_completed([count_words(path) for path in paths]):
                name, words = await count
                total += words
                print(f"{name}: {words.total():,} words", flush=True)
    print(f"{total.total():,} words in {FILES} files; the most frequent:")
    for word, times in total.most_common(3):
        print(f"  {word}: {times:,}")


asyncio.run(main())

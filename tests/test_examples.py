from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.programs import ROOT, SECONDS, Surroundings, quickstart

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = ROOT / "examples"


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


def run(surroundings: Surroundings, name: str) -> list[str]:
    """The lines that a copy of the example prints; it says nothing else and leaves nothing."""
    for path in EXAMPLES.glob(f"{name}*.py"):
        surroundings.write(path.name, path.read_text(encoding="utf-8"))
    ended = surroundings.run("-W", "error", f"{name}.py")
    assert (ended.code, ended.errors) == (0, "")
    assert surroundings.left() == []
    return ended.output.splitlines()


def test_every_example_has_a_test() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"hybrid_lease_neighbour"}

    assert names == {
        "quickstart",
        "streaming",
        "fib",
        "hybrid_lease",
        "word_count",
        "pipeline",
        "fastapi_app",
    }


def test_no_example_needs_a_main_guard() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert "__name__" not in path.read_text(encoding="utf-8")


def test_quickstart_prints_one_result(surroundings: Surroundings) -> None:
    assert run(surroundings, "quickstart") == ["9,592 primes below 100,000"]


def test_quickstart_is_what_the_readme_shows() -> None:
    assert (EXAMPLES / "quickstart.py").read_text(encoding="utf-8") == quickstart()


def test_streaming_goes_both_ways_and_closes_in_order(surroundings: Surroundings) -> None:
    """In the order in which the lines are written, by two processes: A14."""
    assert run(surroundings, "streaming") == [
        "average: sent 10, is now 10",
        "average: sent 20, is now 15",
        "average: sent 60, is now 30",
        "squares: 0 squared is 0",
        "squares: 1 squared is 1",
        "squares: 2 squared is 4",
        "squares: 3 squared is 9",
        "squares: 4 squared is 16",
        "squares: closed in the worker after 4",
        "squares: and so the caller goes on",
    ]


def test_fib_spreads_over_the_workers(surroundings: Surroundings) -> None:
    """A01: each worker gets its share of the nested calls."""
    result, total, *shares = run(surroundings, "fib")

    assert result == "fib(12) = 144"
    assert total == "465 calls ran in 3 processes:"
    calls = [int(share.split(": ")[1].removesuffix(" calls")) for share in shares]
    assert len(calls) == 3
    assert sum(calls) == 465
    assert min(calls) > 465 // 6


def test_lease_caps_the_workers_of_a_neighbour(surroundings: Surroundings) -> None:
    neighbour, announced, admitted, pool, alone = run(surroundings, "hybrid_lease")

    assert neighbour == "the neighbour announces 4 workers"
    assert announced == "announced: 5 workers, 1 of this pool and 4 more"
    assert admitted == "admitted: 3 workers, for size 1 and lease 2"
    assert "3/3 admitted, 2 waiting" in pool
    assert alone == "without the neighbour: 1 worker"


def test_word_count_shows_each_count_and_their_sum(surroundings: Surroundings) -> None:
    lines = run(surroundings, "word_count")

    counts = {}
    for line in lines[:12]:
        name, words = line.removesuffix(" words").split(": ")
        counts[name] = int(words.replace(",", ""))
    assert sorted(counts) == [f"text-{number:02}.txt" for number in range(12)]
    assert lines[12] == f"{sum(counts.values()):,} words in 12 files; the most frequent:"
    assert [re.sub(r"[\d,]+", "N", line) for line in lines[13:]] == [
        "  sheep: N",
        "  wool: N",
        "  yarn: N",
    ]


def test_pipeline_adds_up_what_the_log_says(surroundings: Surroundings) -> None:
    lines = run(surroundings, "pipeline")

    assert lines == [
        "20,000 lines in 40 calls, 200 of them broken",
        "  /loom: 50,959,489 bytes",
        "  /: 49,904,808 bytes",
        "  /fleece: 49,436,284 bytes",
        "  /yarn: 49,097,492 bytes",
    ]


@contextmanager
def served(surroundings: Surroundings, app: str) -> Iterator[str]:
    """The address of a server of the app, which must end in order."""
    module = f"{app.partition(':')[0]}.py"
    shutil.copy(EXAMPLES / module, surroundings.work)
    with subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port", "0", app],
        cwd=surroundings.work,
        env=surroundings.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr
            said = []
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail("".join(said))
        finally:
            server.terminate()
            _, rest = server.communicate(timeout=SECONDS)
    assert "Application shutdown complete" in rest
    assert "Traceback" not in rest
    assert surroundings.processes() == []


async def test_fastapi_app_answers_with_what_workers_find(surroundings: Surroundings) -> None:
    """More requests at once than its workers run calls: the others wait."""
    with served(surroundings, "fastapi_app:app") as address:
        async with httpx.AsyncClient(base_url=address, timeout=SECONDS) as client:
            answers = await asyncio.gather(
                *(client.get(f"/factors/{2**number}") for number in range(1, 31))
            )

    assert [answer.json() for answer in answers] == [[2] * number for number in range(1, 31)]

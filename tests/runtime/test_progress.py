"""The bar of `wool.map`, in a terminal, in a notebook, and where there is neither."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

import wool
from tests.programs import SECONDS, Surroundings
from tests.test_surroundings import run_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTINE = """
import asyncio
import wool

@wool.routine
async def parse(item):
    await asyncio.sleep(0.02)
    if item % 10 == 3:
        raise ValueError(item)
    return item
"""

PROGRAM = f"""
{ROUTINE}
async def main():
    async with wool.WorkerPool(size=1):
        async for result in wool.map(
            parse, ITEMS, concurrency=5, return_exceptions=True, progress=True
        ):
            if result == 50:
                print("half way")

asyncio.run(main())
"""

CURSOR_UP = "\x1b[1A"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        surroundings.environment |= {"TERM": "xterm"}
        yield surroundings


def shown(surroundings: Surroundings, program: str, *, piped: bool = False) -> tuple[str, str]:
    """What a program writes to a terminal of 100 columns, and to the pipe that is its output."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (25, 100))
    output = subprocess.PIPE if piped else terminal
    with subprocess.Popen(
        [sys.executable, "-W", "error", surroundings.write("program.py", program)],
        cwd=surroundings.work,
        env=surroundings.environment,
        stdin=terminal,
        stdout=output,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        text = b""
        try:
            while data := os.read(screen, 4096):
                text += data
        except OSError:  # Linux says so at the end of a terminal
            pass
        said = process.stdout.read().decode() if process.stdout else ""
        assert process.wait(SECONDS) == 0, text
    os.close(screen)
    assert surroundings.left() == []
    return text.decode(), said


def frames(text: str) -> list[str]:
    """The lines of a bar, one after another."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text.replace("\r", "\n"))
    return [line for line in plain.splitlines() if line.endswith(" failed")]


LINE = re.compile(
    r"parse [━╸╺ ]+ +(\d+)/(\d+|\?) +([\d.,]+)/s +(?:(\d+:\d\d:\d\d|-:--:--) left)? +(\d+) failed *"
)


def fields(frame: str) -> tuple[str, ...]:
    """Count, total, rate, remaining time, failures."""
    matched = LINE.fullmatch(frame)
    assert matched, frame
    return tuple(field or "" for field in matched.groups())


def test_bar_in_a_terminal(surroundings: Surroundings) -> None:
    text, _ = shown(surroundings, PROGRAM.replace("ITEMS", "range(100)"))

    first, *between, last = map(fields, frames(text))
    assert first == ("0", "100", "0.0", "-:--:--", "0")
    counts = [int(count) for count, *_ in between]
    assert counts == sorted(counts)
    assert any(0 < count < 100 for count in counts)
    assert any(remaining not in ("", "-:--:--") for _, _, _, remaining, _ in between)
    count, total, rate, remaining, failures = last
    assert (count, total, remaining, failures) == ("100", "100", "0:00:00", "10")
    # 20 ms for each five.
    assert 0 < float(rate.replace(",", "")) <= 250
    assert "half way" in text
    assert text.index(HIDE) < text.index(SHOW)


def test_bar_of_an_input_without_a_length(surroundings: Surroundings) -> None:
    text, _ = shown(surroundings, PROGRAM.replace("ITEMS", "(i for i in range(200))"))

    _, *between, last = map(fields, frames(text))
    assert any(total == "?" and int(count) > 0 for count, total, *_ in between)
    assert last[:2] == ("200", "200")


def test_bar_goes_to_standard_error_and_output_where_it_belongs(
    surroundings: Surroundings,
) -> None:
    text, said = shown(surroundings, PROGRAM.replace("ITEMS", "range(60)"), piped=True)

    assert fields(frames(text)[-1])[:2] == ("60", "60")
    assert said == "half way\n"


def test_bars_at_a_time_have_a_line_each(surroundings: Surroundings) -> None:
    program = f"""
{ROUTINE}
@wool.routine
async def store(item):
    await asyncio.sleep(0.02)

async def main():
    async with wool.WorkerPool(size=1):
        parsed = wool.map(
            parse, range(30), concurrency=5, return_exceptions=True, progress=True
        )
        async for _ in wool.map(store, parsed, concurrency=5, progress=True):
            pass

asyncio.run(main())
"""
    text, _ = shown(surroundings, program)

    assert [re.split(" +", line)[0] for line in frames(text)[-2:]] == ["store", "parse"]
    assert ["30/30" in line for line in frames(text)[-2:]] == [True, True]


def test_bar_that_is_left_early_gives_the_terminal_back(surroundings: Surroundings) -> None:
    program = f"""
{ROUTINE}
async def main():
    async with wool.WorkerPool(size=1):
        try:
            async for _ in wool.map(parse, range(30), concurrency=5, progress=True):
                pass
        except ValueError as error:
            print("failed with", error)

asyncio.run(main())
"""
    text, _ = shown(surroundings, program)

    count, total, *_, failures = fields(frames(text)[-1])
    assert (1 <= int(count) < 30, total, failures) == (True, "30", "1")
    assert text.rindex(SHOW) < text.index("failed with 3")


@pytest.mark.parametrize(
    "variables", [{}, {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1", "TTY_COMPATIBLE": "1"}], ids=str
)
def test_nothing_is_drawn_where_there_is_no_terminal(
    surroundings: Surroundings, variables: dict[str, str]
) -> None:
    surroundings.environment |= variables
    program = surroundings.write("program.py", PROGRAM.replace("ITEMS", "range(60)"))

    ended = surroundings.run("-W", "error", program)

    assert (ended.code, ended.output, ended.errors) == (0, "half way\n", "")


def test_nothing_is_drawn_on_a_dumb_terminal(surroundings: Surroundings) -> None:
    surroundings.environment |= {"TERM": "dumb"}

    text, _ = shown(surroundings, PROGRAM.replace("ITEMS", "range(60)"))

    assert text == "half way\r\n"


def test_nothing_is_drawn_without_standard_error(surroundings: Surroundings) -> None:
    head = "import sys\nsys.stderr = None\n"
    program = surroundings.write("program.py", head + PROGRAM.replace("ITEMS", "range(60)"))

    ended = surroundings.run("-W", "error", program)

    assert (ended.code, ended.output) == (0, "half way\n")


def test_bar_without_rich_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    @wool.routine
    async def parse(item: int) -> None: ...

    monkeypatch.setitem(sys.modules, "rich", None)

    with pytest.raises(ImportError, match=r"rich can't be imported.*install the extra wool\[cli\]"):
        wool.map(parse, [1], progress=True)
    wool.map(parse, [1], progress=False)


def test_bar_in_a_notebook(surroundings: Surroundings) -> None:
    cell = """
async with wool.WorkerPool(size=1):
    results = wool.map(
        parse, range(50), concurrency=5, return_exceptions=True, progress=True
    )
    print(len([result async for result in results]))
"""
    said = run_cells(surroundings, ROUTINE, cell)

    assert said[0] == []
    first, *between, last, printed = [text.strip() for text in said[1]]
    assert fields(first) == ("0", "50", "0.0", "-:--:--", "0")
    assert [fields(frame)[1] for frame in between] == ["50"] * len(between)
    count, total, _, remaining, failures = fields(last)
    assert (count, total, remaining, failures) == ("50", "50", "0:00:00", "5")
    assert printed == "50"
    assert surroundings.left() == []

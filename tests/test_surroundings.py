"""The README's quickstart, wherever a newcomer may paste it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from tests.programs import SECONDS, Surroundings, quickstart

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULT = "9,592 primes below 100,000"
RUN = "asyncio.run(main())"
"""The last line of the quickstart."""

PROMPTS = (">>> ", "... ")

ASYNCIO_REPL = r"""asyncio REPL .*
Use "await" directly instead of "asyncio.run\(\)"\.
Type "help", "copyright", "credits" or "license" for more information\.
(>>> import asyncio
)?
?exiting asyncio REPL\.\.\.
"""

KERNEL = """
import json, sys
from jupyter_client import KernelManager

manager = KernelManager(transport="ipc")
manager.start_kernel()
client = manager.blocking_client()
client.start_channels()
try:
    client.wait_for_ready(timeout=60)
    for cell in json.loads(sys.argv[1]):
        said = []
        client.execute_interactive(
            cell, allow_stdin=False, timeout=60, output_hook=lambda m: said.append(m["content"])
        )
        texts = [
            c.get("text") or c.get("traceback") or c.get("data", {}).get("text/plain") for c in said
        ]
        print(json.dumps([text for text in texts if text]))
finally:
    client.stop_channels()
    manager.shutdown_kernel()
"""


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


def replaced(last: str) -> str:
    """The quickstart with another last line."""
    program = quickstart().removesuffix(f"{RUN}\n")
    assert program != quickstart()
    return f"{program}{last}\n"


def without_prompts(text: str) -> str:
    return re.sub(r"(>>> |\.\.\. )+", "", text).strip()


@pytest.fixture
def asyncio_repl(surroundings: Surroundings) -> None:
    """Skips where `python -m asyncio` takes one line at a time, as that of 3.13.0 does."""
    tried = surroundings.run("-m", "asyncio", input="if 1:\n    print(2)\n\n")
    if without_prompts(tried.output) != "2":
        pytest.skip(f"python -m asyncio does not take several lines: {tried}")


@pytest.mark.parametrize("options", [[], ["-X", "dev", "-X", "frozen_modules=off"], ["-I"], ["-O"]])
def test_quickstart_in_a_file(surroundings: Surroundings, options: list[str]) -> None:
    """Without an `if __name__` guard."""
    path = surroundings.write("quick start.py", quickstart())

    ended = surroundings.run(*options, path)

    assert (ended.code, ended.output) == (0, f"{RESULT}\n")
    if "dev" not in options:  # in which asyncio tells of routines that compute for 0.1 s
        assert ended.errors == ""
    assert surroundings.left() == []


def test_quickstart_as_a_module(surroundings: Surroundings) -> None:
    surroundings.write("quickstart.py", quickstart())

    ended = surroundings.run("-W", "error", "-m", "quickstart")

    assert (ended.code, ended.output, ended.errors) == (0, f"{RESULT}\n", "")
    assert surroundings.left() == []


def test_quickstart_as_a_command(surroundings: Surroundings) -> None:
    ended = surroundings.run("-W", "error", "-c", quickstart())

    assert (ended.code, ended.output, ended.errors) == (0, f"{RESULT}\n", "")
    assert surroundings.left() == []


def test_quickstart_from_standard_input(surroundings: Surroundings) -> None:
    ended = surroundings.run("-W", "error", "-", input=quickstart())

    assert (ended.code, ended.output, ended.errors) == (0, f"{RESULT}\n", "")
    assert surroundings.left() == []


@pytest.mark.parametrize("closed", [[0], [1], [0, 1, 2]], ids=str)
def test_quickstart_without_standard_streams(surroundings: Surroundings, closed: list[int]) -> None:
    """As in a daemon: pipes get the numbers of the descriptors that are closed."""
    head = f"import os\nfor number in {closed}: os.close(number)\n"
    last = f"print = open('result', 'w').write\n{RUN}"
    path = surroundings.write("quickstart.py", f"{head}{replaced(last)}")
    result = surroundings.write("result", "")

    ended = surroundings.run(path)

    assert (ended.code, ended.errors) == (0, "")
    assert result.read_text(encoding="utf-8") == RESULT
    assert surroundings.left() == []


def test_quickstart_on_uvloop(surroundings: Surroundings) -> None:
    """Again and again: it forks while gRPC runs, and what it closes twice may be gRPC's."""
    program = replaced("import uvloop\n\nfor _ in range(4):\n    uvloop.run(main())")
    path = surroundings.write("quickstart.py", program)

    ended = surroundings.run("-W", "error", path)

    assert (ended.code, ended.output, ended.errors) == (0, f"{RESULT}\n" * 4, "")
    assert surroundings.left() == []


@pytest.mark.parametrize("level", [None, "INFO"])
def test_import_leaves_the_environment_alone(surroundings: Surroundings, level: str | None) -> None:
    """The log level that gRPC is given for its import is the user's, if there is one."""
    surroundings.environment.pop("GRPC_VERBOSITY", None)
    if level is not None:
        surroundings.environment["GRPC_VERBOSITY"] = level
    program = "import os\nbefore = dict(os.environ)\nimport wool\nprint(before == os.environ)"

    assert surroundings.run("-c", program).output == "True\n"


def test_quickstart_piped_into_the_interpreter(surroundings: Surroundings) -> None:
    ended = surroundings.run("-W", "error", "-i", "-q", input=quickstart())

    assert (ended.code, ended.output) == (0, f"{RESULT}\n")
    assert without_prompts(ended.errors) == ""
    assert surroundings.left() == []


@pytest.mark.usefixtures("asyncio_repl")
def test_quickstart_piped_into_the_asyncio_interpreter(surroundings: Surroundings) -> None:
    ended = surroundings.run("-m", "asyncio", input=replaced("await main()"))

    assert ended.code == 0
    assert without_prompts(ended.output) == RESULT
    assert re.fullmatch(ASYNCIO_REPL, ended.errors), ended.errors
    assert surroundings.left() == []


def test_quickstart_typed_into_the_interpreter(surroundings: Surroundings) -> None:
    check_typed(surroundings, ["-i", "-q"], quickstart())


@pytest.mark.usefixtures("asyncio_repl")
def test_quickstart_typed_into_the_asyncio_interpreter(surroundings: Surroundings) -> None:
    check_typed(surroundings, ["-m", "asyncio"], replaced("await main()"))


def check_typed(surroundings: Surroundings, command: list[str], program: str) -> None:
    with Terminal(surroundings, command) as terminal:
        terminal.read()
        *answers, last = [terminal.type(line) for line in program.splitlines()]
        code = terminal.leave()

    assert set(answers) == {""}
    assert last == RESULT
    assert code == 0
    assert surroundings.left() == []


class Terminal:
    """A Python that is typed to."""

    def __init__(self, surroundings: Surroundings, command: list[str]) -> None:
        self._screen, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (25, 200))
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=surroundings.work,
            env=surroundings.environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._screen)
        self._process.kill()
        self._process.wait()

    def read(self) -> str:
        """What it says until it prompts."""
        text = ""
        while not text.endswith(PROMPTS):
            ready, _, _ = select.select([self._screen], [], [], SECONDS)
            assert ready, f"no prompt after {text!r}"
            text += os.read(self._screen, 4096).decode()
        return text[: -len(PROMPTS[0])].replace("\r\n", "\n")

    def type(self, line: str) -> str:
        """What it answers, without the echo."""
        os.write(self._screen, f"{line}\n".encode())
        return self.read().removeprefix(f"{line}\n").strip()

    def leave(self) -> int:
        os.write(self._screen, b"exit()\n")
        with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
            while os.read(self._screen, 4096):
                pass
        return self._process.wait(SECONDS)


def run_cells(surroundings: Surroundings, *cells: str) -> list[list[str]]:
    """What each of the cells prints in a Jupyter kernel, displays or raises, there."""
    ended = surroundings.run("-c", KERNEL, json.dumps(cells))
    assert (ended.code, ended.errors) == (0, "")
    return [json.loads(line) for line in ended.output.splitlines()]


def test_quickstart_in_a_notebook(surroundings: Surroundings) -> None:
    """In three cells: A11."""
    imports, routine, rest = replaced("await main()").split("\n\n\n", 2)

    said = run_cells(surroundings, f"{imports}\n", routine, rest)

    assert said == [[], [], [f"{RESULT}\n"]]
    assert surroundings.left() == []


def test_notebook_runs_a_routine_as_it_was_last_defined(surroundings: Surroundings) -> None:
    define = "import wool\n@wool.routine\nasync def answer(): return OFFSET + {}"
    call = "async with wool.WorkerPool(size=1): print(await answer())"

    said = run_cells(
        surroundings, "OFFSET = 10", define.format(1), call, define.format(2), "OFFSET = 20", call
    )

    assert said == [[], [], ["11\n"], [], [], ["22\n"]]
    assert surroundings.left() == []


async def test_notebook_that_is_shut_down_takes_its_workers_along(
    surroundings: Surroundings,
) -> None:
    """A50: the pool is never left."""
    enter = "import wool\npool = wool.WorkerPool(size=1)\nawait pool.__aenter__()\nprint('entered')"

    said = run_cells(surroundings, enter)

    assert said == [["entered\n"]]
    await surroundings.emptied()

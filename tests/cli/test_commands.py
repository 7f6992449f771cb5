"""The command line as such, and the commands that look at workers and stop them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

import wool
from tests.cli.commands import PATIENCE, Running, Terminal, environment
from tests.cli.commands import wool as run
from tests.cli.routines import held
from tests.programs import ROOT
from wool import LocalDiscovery, WorkerPool
from wool.cli.amounts import duration, size
from wool.cli.commands import COMMANDS
from wool.cli.commands import wool as command
from wool.cli.status import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "looked-at"


@pytest.fixture(scope="module")
def workers(runtime_directory: Path) -> Iterator[Running]:
    """Three of them, one after the other of which is stopped here."""
    with Running("worker", "--workers", "3", "--join", NAMESPACE, "--tag", "a") as running:
        running.line()
        yield running
        assert running.end() == 0, "all of them have been stopped"


class TestUsage:
    def test_help_tells_of_every_command(self) -> None:
        shown = run("--help")
        assert shown.returncode == 0
        listed = re.findall(r"^  (\w+)  ", shown.stdout, re.MULTILINE)
        assert sorted(listed) == sorted(COMMANDS)
        assert run("--version").stdout == f"wool {wool.__version__}\n"

    def test_without_the_extra_it_says_how_to_get_it(self, tmp_path: Path) -> None:
        """With the packages that are installed, but for those of the extra."""
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if path.name not in ("click", "rich"):
                (tmp_path / path.name).symlink_to(path)
        (tmp_path / "wool").symlink_to(ROOT / "src" / "wool")
        ended = subprocess.run(
            [sys.executable, "-S", "-m", "wool", "status"],
            env=environment(PYTHONPATH=str(tmp_path), COVERAGE_PROCESS_START=""),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == (
            "The wool command needs click, rich: python -m pip install 'wool[cli]'\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("worker --discovery nowhere", "--discovery': 'nowhere': expected local:NAME, lan["),
            ("worker --discovery dns:a.example:1", "dns:a.example:1 announces nobody"),
            ("worker --discovery redis://h:x", "--discovery: redis://h:x#wool: "),
            ("worker --advertise here", "--advertise: it is for lan and redis"),
            ("worker --port 65536", "--port': '65536': expected a number in 0..65535"),
            ("worker --port 65535 --workers 2", "--port: 2 workers have no ports from 65535 on"),
            ("worker --port tcp://10.0.0.1:80", "enableServiceLinks: false"),
            ("worker --max-memory much", "--max-memory': 'much': expected bytes, or such as 512M"),
            ("worker --workers 0", "--workers': 0 is not in the range"),
            ("worker --identity farm", "--identity needs TLS: give --ca, --key and --cert"),
            ("worker --ca {file}", "TLS takes --ca, --key and --cert, all three"),
            ("worker --ca {file} --key {file} --cert {file}", "holds no PEM certificate"),
            ("status --no-mutual", "--no-mutual needs TLS"),
            ("stop", "say which workers: by uid, by --tag, or --all"),
            ("stop --all --tag a", "say which workers: by uid, by --tag, or --all"),
            ("stop --all --now --timeout 3", "--timeout is how long to drain"),
            ("top", "top needs a terminal; wool status does without"),
            ("run nothing.py", "File 'nothing.py' does not exist"),
        ],
    )
    def test_what_is_wrong_is_named(self, arguments: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        given = [each.format(file=tmp_path / "file") for each in arguments.split()]
        ended = invoke(*given)
        assert ended.exit_code == 2
        assert message in " ".join(ended.stderr.split())

    @pytest.mark.parametrize("tag", ["big gpu", "big,gpu", "gpu\n", ""])
    def test_tag_that_would_look_like_others_is_named(self, tag: str) -> None:
        ended = invoke("worker", "--tag", "fine", "--tag", tag)
        assert ended.exit_code == 2
        message = f"'--tag': {tag!r}: expected a tag without spaces and commas"
        assert message in " ".join(ended.stderr.split())

    def test_tags_of_the_environment_have_spaces_between_them(self) -> None:
        environment = {"WOOL_TAG": "big gpu,fast"}
        ended = CliRunner().invoke(command, ["worker"], env=environment)
        assert "'gpu,fast': expected a tag" in " ".join(ended.stderr.split())


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


class TestInterruption:
    def test_ends_with_what_shells_expect(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(INTERRUPT)
        ended = subprocess.run(
            [sys.executable, "-m", "wool", "run", str(script)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            preexec_fn=interruptible,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def interruptible() -> None:
    """A shell's background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


class TestStatus:
    def test_of_nobody(self) -> None:
        ended = run("status", "--join", "nobody")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == "No workers found\n"
        assert json.loads(run("status", "--join", "nobody", "--json").stdout) == {"workers": []}

    @pytest.mark.parametrize("arguments", [("status",), ("stop", "--all")])
    def test_of_a_place_that_can_not_be_reached(self, arguments: tuple[str, ...]) -> None:
        result = invoke(*arguments, "--discovery", "redis://127.0.0.1:1")
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: workers can't be looked for: Error 111")
        assert result.stderr.count("\n") == 1

    def test_without_standard_output(self) -> None:
        shell = f"exec {sys.executable} -m wool status --discovery local:nobody >&-"
        ended = subprocess.run(
            ["sh", "-c", shell],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (1, "No workers found\n")

    def test_without_a_terminal_it_is_aligned_text(self, workers: Running) -> None:
        ended = run("status", "--join", NAMESPACE)
        head, *rows = ended.stdout.splitlines()
        assert head.split()[:6] == ["worker", "host", "pid", "tags", "state", "uptime"]
        pids = {process.pid for process in workers.workers()}
        assert {int(row.split()[2]) for row in rows} == pids
        assert {len(row) for row in rows} == {len(head)}
        assert ended.returncode == 0

    def test_in_a_terminal_it_is_a_table(self, workers: Running) -> None:
        with Terminal("status", "--join", NAMESPACE) as terminal:
            assert terminal.end() == 0
            assert "───" in terminal.text
            assert terminal.text.count("serving") == 3

    @pytest.mark.parametrize("columns", [40, 60, 80, 200])
    def test_what_a_table_has_no_room_for_is_left_out(self, workers: Running, columns: int) -> None:
        found = json.loads(run("status", "--json", "--join", NAMESPACE).stdout)["workers"]
        with Terminal("status", "--join", NAMESPACE, columns=columns) as terminal:
            assert terminal.end() == 0
        head, *lines = filter(None, map(str.strip, terminal.text.splitlines()))
        uids = {each["uid"][:8] for each in found}
        assert {line.split()[0] for line in lines} == {lines[0], *uids}
        assert "…" not in terminal.text
        assert terminal.text.count("serving") == len(found)
        shown = [name for name in COLUMNS if name in head.split()]
        assert head.split() == shown
        assert {"worker", "state", "running"} <= {*shown}
        assert (len(shown) == len(COLUMNS)) is (columns == 200)

    def test_in_several_places_a_worker_is_one(self, workers: Running) -> None:
        places = f"local:{NAMESPACE} local:another local:{NAMESPACE}"
        ended = run("status", "--json", WOOL_DISCOVERY=places)
        found = json.loads(ended.stdout)["workers"]
        assert {each["pid"] for each in found} == {each.pid for each in workers.workers()}
        assert all(each["tags"] == ["a"] and each["running"] == 0 for each in found)


class TestTop:
    async def test_shows_what_a_worker_runs(self, workers: Running, tmp_path: Path) -> None:
        go = tmp_path / "go"
        async with WorkerPool(lease=3, discovery=LocalDiscovery(NAMESPACE)):
            calls = [asyncio.create_task(held(str(go))) for _ in range(3)]
            with Terminal("top", "--join", NAMESPACE, "--interval", "0.2") as terminal:
                await asyncio.to_thread(terminal.read_until, lambda text: "3 calls running" in text)
                terminal.type("t")
                await asyncio.to_thread(
                    terminal.read_until,
                    lambda text: (
                        "tests.cli.routines.held:" in text and 'File ".../cli/routines.py"' in text
                    ),
                )
                terminal.type("q")
                assert await asyncio.to_thread(terminal.end) == 0
            go.touch()
            await asyncio.gather(*calls)

    def test_keys_select_sort_and_drain(self, workers: Running) -> None:
        before = {process.pid for process in workers.workers()}
        with Terminal("top", "--join", NAMESPACE, "--interval", "0.2") as terminal:
            modes = terminal.modes
            terminal.read_until(
                lambda text: "3 workers on 1 host" in text and f" {os.uname().nodename} " in text
            )
            terminal.type("s")
            terminal.read_until(lambda text: "uptime▾" in text)
            terminal.type("\x1b[B\x1b[C")
            terminal.read_until(lambda text: "running▾" in text)
            terminal.type("t")
            terminal.read_until(lambda text: "runs 0 tasks" in text)
            terminal.type("x")
            terminal.read_until(lambda text: "and stop it? y/n" in text)
            terminal.type("n")
            terminal.read_until(lambda text: "q quit" in text)
            terminal.type("d")
            terminal.read_until(lambda text: "2 workers on 1 host" in text)
            terminal.type("q")
            assert terminal.end() == 0
            assert terminal.modes == modes
        assert len({process.pid for process in workers.workers()} & before) == 2


class TestStop:
    """The last in this module: nobody is left then."""

    def test_names_of_none_or_several(self, workers: Running) -> None:
        unknown = run("stop", "zz", "--join", NAMESPACE)
        assert unknown.returncode == 2
        assert "'zz' is the beginning of no workers' uids" in unknown.stderr
        untagged = run("stop", "--tag", "b", "--join", NAMESPACE)
        assert (untagged.returncode, untagged.stderr) == (1, "No such workers found\n")

    def test_by_uid_and_by_tag(self, workers: Running) -> None:
        found = json.loads(run("status", "--json", "--join", NAMESPACE).stdout)["workers"]
        uid = found[0]["uid"]
        stopped = run("stop", uid[:13], "--join", NAMESPACE)
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert stopped.stdout == f"{uid[:8]} at {found[0]['address']} has stopped\n"
        last = run("stop", "--tag", "a", "--now", "--join", NAMESPACE)
        assert (last.returncode, last.stdout.count("has stopped")) == (0, len(found) - 1)
        assert workers.end() == 0


SCRIPT = """
import asyncio, os, sys
import wool
from beside import double

@wool.routine
async def here(number):
    return os.getpid(), await double(number)

async def main():
    return await asyncio.gather(*map(here, range(10)))

for _ in range(2):
    pids, values = zip(*asyncio.run(main()))
    print(len(set(pids)), os.getpid() in pids, values)
print(sys.argv[1:], __name__)
sys.exit(3)
"""

BESIDE = """
import wool

@wool.routine
async def double(number):
    return 2 * number
"""


class TestRun:
    def test_says_that_nobody_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(SCRIPT)
        (tmp_path / "beside.py").write_text(BESIDE)
        command = ("run", "--discovery", "local:nobody-at-all", str(tmp_path / "script.py"))
        process = subprocess.Popen(
            [sys.executable, "-m", "wool", *command],
            env=environment(),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=interruptible,
        )
        try:
            assert process.stderr is not None
            assert "admitted no worker within 5 s; none has been discovered" in (
                process.stderr.readline()
            )
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)

    def test_script_runs_in_workers_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(SCRIPT)
        (tmp_path / "beside.py").write_text(BESIDE)
        ended = run("run", "--workers", "2", str(tmp_path / "script.py"), "--option", "value")
        line = "2 False (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)\n"
        assert ended.stderr == ""
        assert ended.stdout == f"{line}{line}['--option', 'value'] __main__\n"
        assert ended.returncode == 3

    def test_script_runs_in_workers_that_are_there(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(SCRIPT.replace("from beside import double", BESIDE))
        with Running("worker", "--workers", "2", "--join", "for-scripts") as running:
            running.line()
            ended = run("run", "--join", "for-scripts", "--lease", "1", str(tmp_path / "script.py"))
            assert (ended.returncode, ended.stderr) == (3, "")
            assert ended.stdout.startswith("1 False (0, 2, 4")
            running.send(15)
            assert running.end() == 0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(59.4), "59 s"),
        (duration(61), "1 m 01 s"),
        (duration(3661), "1 h 01 m"),
        (duration(90000), "1 d 01 h"),
        (size(1023), "1023 B"),
        (size(5 * 1024**2), "5 MiB"),
        (size(3 * 1024**3), "3.0 GiB"),
    ],
)
def test_amounts(shown: str, expected: str) -> None:
    assert shown == expected

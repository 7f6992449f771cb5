from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import click
import pytest

import wool
from tests.programs import ROOT, Block, Surroundings, blocks
from wool.cli.commands import wool as program

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = blocks(ROOT / "README.md")
PROGRAMS = [
    (block, following) for block, following in pairwise(BLOCKS) if block.language == "python"
]
COMMANDS = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]


def test_readme_has_nothing_but_programs_with_their_output_and_commands() -> None:
    languages = [block.language for block in BLOCKS]

    assert set(languages) == {"python", "text", "sh"}
    assert languages.count("text") == len(PROGRAMS) == languages.count("python")


@pytest.mark.parametrize(
    ("program", "output"), PROGRAMS, ids=[f"line-{block.line}" for block, _ in PROGRAMS]
)
def test_program_prints_what_the_readme_says_and_nothing_else(
    program: Block, output: Block
) -> None:
    assert output.language == "text"
    with Surroundings.make() as surroundings:
        ended = surroundings.run("-W", "error", surroundings.write("program.py", program.text))
        left = surroundings.left()

    assert (ended.code, ended.errors, ended.output) == (0, "", output.text)
    assert left == []


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_make_knows_the_commands(target: str) -> None:
    assert f"make {target}" in COMMANDS
    make = shutil.which("make")
    assert make is not None
    environment = {"PATH": "/usr/bin:/bin"}  # without what a make around this one hands down

    subprocess.run(
        [make, "--dry-run", target], cwd=ROOT, env=environment, check=True, capture_output=True
    )


def test_commands_are_of_a_kind_that_is_tested() -> None:
    """The third one is what `make` does as well, but for making it editable."""
    others = [command for command in COMMANDS if not command.startswith("wool ")]
    assert others == ["make quickstart", "make test", "python -m pip install ."]
    for command in COMMANDS:
        assert shlex.split(command)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("wool ")])
def test_command_has_the_options(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca.pem", "key.pem", "cert.pem", "script.py"):
        (tmp_path / name).touch()
    _, name, *arguments = shlex.split(line)
    subcommand = program.get_command(click.Context(program), name)
    assert subcommand is not None

    assert subcommand.make_context(name, arguments).params


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    headings = {line.lstrip("# ") for line in text.splitlines() if line.startswith("#")}
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (ROOT / page).parent.joinpath(path).exists(), target
        assert not anchor or anchor in anchors, target


def test_names_exist_that_the_readme_mentions() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\bwool\.([A-Za-z_]+)", text)) - {"otel", "runtime"}
    errors = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| (?:no|maybe)", text, re.MULTILINE))

    assert names <= set(dir(wool))
    for name in {name for pair in errors for name in pair if name}:
        assert issubclass(getattr(wool, name), wool.WoolError)

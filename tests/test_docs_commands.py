"""The commands that pages and deploy/ have, and the options that the reference lists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import click
import pytest
import trustme
import yaml

from tests.programs import ROOT, SECONDS, blocks
from tests.redis_server import RedisServer, needs_redis
from tests.test_docs import DOCS, PAGES
from wool.cli.commands import COMMANDS, wool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEPLOY = ROOT / "deploy"

FILES = ("ca.pem", "key.pem", "cert.pem", "ca.crt", "tls.key", "tls.crt", "pipeline.py")
"""What commands name that has to be there."""

SHARED = {"discovery", "join", "ca", "key", "cert", "no_mutual", "identity"}
"""Parameters that have a table for all commands."""

PROGRAM = """
import asyncio
import sys

import wool


@wool.routine
async def double(number: int) -> int:
    return 2 * number


async def main() -> None:
    print(await double(int(sys.argv[1])))


asyncio.run(main())
"""


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `wool` on a page, those of containers included."""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["wool"]:
                    yield words[1:]
                elif words[:2] == ["docker", "run"]:
                    yield ["worker", *words[words.index("wool") + 1 :]]


def parse(name: str, arguments: list[str], **settings: Any) -> click.Context:
    command = wool.get_command(click.Context(wool), name)
    assert command is not None, name
    return command.make_context(name, arguments, **settings)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these names, where commands are parsed."""
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(found, id=" ".join(found)) for page in PAGES for found in commands(page)],
)
def test_command_is_taken(arguments: list[str]) -> None:
    parse(arguments[0], arguments[1:])


def test_arguments_of_pods_are_taken() -> None:
    _, deployment = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]

    parse("worker", [argument.replace("/etc/wool/", "") for argument in container["args"]])


def test_variables_of_the_service_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given = (DEPLOY / "worker.env").read_text(encoding="utf-8")
    unit = (DEPLOY / "wool-worker.service").read_text(encoding="utf-8").replace("%d/", "")
    variables = dict(re.findall(r"(?:^|[ =])(WOOL_\w+)=(\S+)", f"{given}\n{unit}", re.MULTILINE))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    context = parse("worker", [])

    assert len(variables) == 7
    for name in variables:
        source = context.get_parameter_source(name.removeprefix("WOOL_").lower())
        assert source is click.core.ParameterSource.ENVIRONMENT, name


def test_image_has_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")

    [extras] = re.findall(r"'\.\[([\w,]+)\]'", dockerfile)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", COMMANDS)
def test_reference_lists_the_options_of_a_command(name: str) -> None:
    context = parse(
        name, ["pipeline.py"] if name in ("health", "run") else [], resilient_parsing=True
    )
    there = {
        option
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and parameter.name not in SHARED
        for option in (*parameter.opts, *parameter.secondary_opts)
    }

    assert listed(f"wool {name}") == there


def test_reference_lists_the_options_of_all_commands() -> None:
    context = parse("worker", [])
    there = {
        option
        for parameter in context.command.params
        if parameter.name in SHARED
        for option in parameter.opts
    }

    assert listed("Where workers are") | listed("TLS") == there


def listed(heading: str) -> set[str]:
    """The options in the first column of the tables below a heading."""
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`-.*?`) \|", section, re.MULTILINE)
    return {option for cell in cells for option in re.findall(r"`(--[\w-]+)", cell)}


@needs_redis
def test_batch_script_runs_a_program_on_workers(tmp_path: Path) -> None:
    """On one node: what stands for srun runs the command where it is."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (
        ("srun", '#!/bin/sh\nexec "$@"\n'),
        ("wool", f'#!/bin/sh\nexec {sys.executable} -m wool "$@"\n'),
    ):
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o755)
    (tmp_path / "wool").mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("farm")
    authority.cert_pem.write_to_path(tmp_path / "wool" / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "wool" / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "wool" / "cert.pem")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")

    with RedisServer() as server:
        ended = subprocess.run(
            [f"{shutil.which('bash')}", DEPLOY / "slurm.sh", "program.py", "21"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{place}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "WOOL_REDIS": server.url,
                "SLURM_JOB_ID": "7",
                "SLURM_CPUS_PER_TASK": "1",
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["42"]), ended.stderr

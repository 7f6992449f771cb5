"""Every page has nothing but code that is tested, here or where it stands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trustme

import wool
from tests.dns_server import NameServer
from tests.programs import ROOT, SECONDS, Block, Ended, Surroundings, blocks
from tests.redis_server import RedisServer, needs_redis
from tests.test_surroundings import KERNEL

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = [
    *(page for page in sorted(DOCS.glob("*.md")) if not page.is_symlink()),
    ROOT / "src/wool/runtime/worker/README.md",
]
"""But for those that stand elsewhere, and are tested there."""

SNIPPET = re.compile(r'--8<-- "([^":]+)(?::(\w+))?"')

INCLUDED = ("deploy", "examples", "protos")
"""Where files are that pages show. They have tests of their own."""

TITLES = {"uses a farm", "in a cluster", "a cell", "a cell, with workers"}
"""Of programs that take more than this machine has, or than a file. There is a test for each."""

NAMED_OTHERWISE = {"md", "otel", "proto", "protocol", "runtime", "worker"}
"""What follows `wool.` and is no public name: modules, a logger, files."""


def is_snippet(block: Block) -> bool:
    return SNIPPET.fullmatch(block.text.strip()) is not None


def programs(page: Path) -> list[tuple[Block, str]]:
    """The complete programs of a page, with what they print."""
    found = []
    for block, following in pairwise([*blocks(page), Block("", "", "", 0)]):
        if block.language == "python" and not block.title and not is_snippet(block):
            found.append((block, following.text if following.language == "text" else ""))
    return found


def titled(page: str, title: str) -> list[tuple[str, str]]:
    """The blocks with a title, with what they print."""
    return [
        (block.text, following.text if following.language == "text" else "")
        for block, following in pairwise([*blocks(DOCS / page), Block("", "", "", 0)])
        if block.title == title
    ]


PROGRAMS = [
    pytest.param(program, output, id=f"{page.stem}-{program.line}")
    for page in PAGES
    if page.stem not in ("extending", "tls")  # See tests/conformance, and below.
    for program, output in programs(page)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_has_code_of_kinds_that_are_tested(page: Path) -> None:
    for block in blocks(page):
        assert block.title in {"", *TITLES}
        assert is_snippet(block) or block.language in ("mermaid", "python", "sh", "text"), block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_shows_what_exists(page: Path) -> None:
    for path, section in SNIPPET.findall(page.read_text(encoding="utf-8")):
        text = (ROOT / path).read_text(encoding="utf-8")
        if section:
            assert f"[start:{section}]" in text
            assert f"[end:{section}]" in text
        else:
            assert path.split("/")[0] in INCLUDED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_names_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    names = set(re.findall(r"\bwool\.([A-Za-z_]+)", re.sub(r"https?://\S+", "", text)))
    assert names - NAMED_OTHERWISE <= set(dir(wool))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_such_that_a_shell_takes_them(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=SECONDS)


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_program_prints_what_the_page_says_and_nothing_else(program: Block, output: str) -> None:
    with Surroundings.make() as surroundings:
        ended = surroundings.run("-W", "error", surroundings.write("program.py", program.text))
        left = surroundings.left()

    assert ended == Ended(0, output, "")
    assert left == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_certificates_are_made_and_used_as_the_page_says() -> None:
    page = DOCS / "tls.md"
    commands = next(block.text for block in blocks(page) if block.language == "sh")

    with Surroundings.make() as surroundings:
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=surroundings.work,
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )
        ended = [
            surroundings.run("-W", "error", surroundings.write("program.py", program.text))
            for program, _ in programs(page)
        ]

    assert ended == [Ended(0, output, "") for _, output in programs(page)]
    assert len(ended) == 2


def test_cells_run_in_a_notebook() -> None:
    cells = [*titled("notebooks.md", "a cell"), *titled("notebooks.md", "a cell, with workers")]
    neighbour = ROOT / "examples" / "hybrid_lease_neighbour.py"

    with (
        Surroundings.make() as surroundings,
        subprocess.Popen(
            [sys.executable, neighbour, "wool", "1"],
            cwd=surroundings.work,
            env=surroundings.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as workers,
    ):
        assert workers.stdout
        assert workers.stdout.readline()
        ended = surroundings.run("-c", KERNEL, json.dumps([cell for cell, _ in cells]))
        workers.communicate(timeout=SECONDS)  # which ends its input

    said = [json.loads(line) for line in ended.output.splitlines()]
    assert said == [[output] for _, output in cells]
    assert len(cells) == 2


@needs_redis
async def test_program_uses_a_farm_that_meets_at_a_server() -> None:
    [(program, output)] = titled("tutorial.md", "uses a farm")

    with RedisServer() as server, Surroundings.make() as surroundings:
        farm = wool.RedisDiscovery("pictures", url=server.url, advertise_host="127.0.0.1")
        worker = partial(wool.LocalWorker, host="127.0.0.1")
        async with wool.WorkerPool(size=1, worker=worker, discovery=farm):
            ended = await run(surroundings, program, {"redis://redis.example:6379": server.url})

    assert ended == Ended(0, output, "")


async def test_program_uses_workers_at_a_name() -> None:
    [(program, output)] = titled("deploy.md", "in a cluster")
    authority = trustme.CA()
    certificate = authority.issue_cert("wool-workers")

    async with NameServer() as server:
        server.records["wool-workers.default.svc.cluster.local", "A"] = ["127.0.0.1"]
        with Surroundings.make() as surroundings:
            files = [surroundings.work / name for name in ("ca.crt", "tls.key", "tls.crt")]
            authority.cert_pem.write_to_path(files[0])
            certificate.private_key_pem.write_to_path(files[1])
            certificate.cert_chain_pems[0].write_to_path(files[2])
            worker = wool.LocalWorker(
                host="127.0.0.1",
                credentials=wool.WorkerCredentials.from_files(*files),
                identity="wool-workers",
            )
            await worker.start()
            try:
                port = f"{worker.address}".rpartition(":")[2]
                place = f'{port}, nameserver="{server.address}", secure'
                ended = await run(surroundings, program, {"9000, secure": place})
            finally:
                await worker.stop()

    assert ended == Ended(0, output, "")


async def run(surroundings: Surroundings, program: str, places: dict[str, str]) -> Ended:
    """Run a program with what is here in the place of what it names."""
    for named, here in places.items():
        assert program.count(named) == 1
        program = program.replace(named, here)
    path = surroundings.write("program.py", program)
    return await asyncio.to_thread(surroundings.run, "-W", "error", path)


def test_reference_has_all_public_names_in_their_groups() -> None:
    source = (ROOT / "src/wool/__init__.py").read_text(encoding="utf-8")
    listed = source.partition("__all__ = [")[2].partition("]\n")[0]
    groups = re.findall(r'# (.+)|"(\w+)"', listed)
    reference = (DOCS / "api.md").read_text(encoding="utf-8").partition("## Options of")[0]

    shown = re.findall(r"^## (.+)|^::: wool\.(\w+)$", reference, re.MULTILINE)

    assert shown == groups
    assert [name for _, name in groups if name] == wool.__all__


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """The links too: mkdocs.yml has everything that is wrong be an error."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    reference = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in wool.__all__:
        assert f'id="wool.{name}"' in reference

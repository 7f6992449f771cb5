"""Imports inside the package point down, form no cycle, and use its root for ambient names only."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src"

# Lowest first: a module imports from its own row and the rows before it.
LAYERS = [
    ("wool._version",),
    ("wool.runtime.__init__", "wool.runtime.*.__init__"),
    ("wool._grpc", "wool.protocol.*"),
    (
        "wool.runtime.byvalue",
        "wool.runtime.errors",
        "wool.runtime.extras",
        "wool.runtime.memory",
        "wool.runtime.observation",
        "wool.runtime.rundir",
        "wool.runtime.typing",
        "wool.runtime.unimportable",
    ),
    ("wool.otel", "wool.runtime.factory"),
    ("wool.runtime.worker.base", "wool.runtime.worker.oom", "wool.runtime.worker.version"),
    ("wool.runtime.worker.fate",),
    ("wool.runtime.worker.configuration", "wool.runtime.worker.metadata"),
    ("wool.runtime.capture", "wool.runtime.remote_exception", "wool.runtime.resourcepool"),
    ("wool.runtime.context", "wool.runtime.serializer"),
    ("wool.runtime.routine.options", "wool.runtime.unpicklable"),
    ("wool.runtime.routine.task",),
    ("wool.runtime.discovery.base", "wool.runtime.discovery.descriptors"),
    ("wool.runtime.discovery.*",),
    ("wool.runtime.worker.auth", "wool.runtime.worker.membership"),
    (
        "wool.runtime.worker.backpressure",
        "wool.runtime.worker.framing",
        "wool.runtime.worker.guest",
        "wool.runtime.worker.health",
        "wool.runtime.worker.line",
        "wool.runtime.worker.loopback",
        "wool.runtime.worker.relay",
        "wool.runtime.worker.status",
        "wool.runtime.worker.transport",
    ),
    ("wool.runtime.worker.arena", "wool.runtime.worker.exchange"),
    (
        "wool.runtime.worker.call",
        "wool.runtime.worker.definitions",
        "wool.runtime.worker.executor",
        "wool.runtime.worker.fetches",
    ),
    ("wool.runtime.worker.session",),
    ("wool.runtime.worker.connection",),
    ("wool.runtime.loadbalancer.base",),
    ("wool.runtime.loadbalancer.*",),
    ("wool.runtime.worker.roster",),
    ("wool.runtime.worker.proxy",),
    ("wool.runtime.worker.stacks",),
    ("wool.runtime.worker.interceptor", "wool.runtime.worker.watch"),
    ("wool.runtime.worker.serversession",),
    ("wool.runtime.worker.service",),
    ("wool.runtime.worker.process",),
    ("wool.runtime.worker.crew", "wool.runtime.worker.local", "wool.runtime.worker.main"),
    ("wool.runtime.worker.pool",),
    ("wool.runtime.progress", "wool.runtime.routine.wrapper"),
    ("wool.runtime.map",),
    ("wool.__init__",),
    ("wool.cli.*",),
    ("wool.__main__",),
]

AMBIENT = {
    "__proxy__",
    "__proxy_pool__",
    "__worker_metadata__",
    "__worker_service__",
    "__worker_uds_address__",
}

ROOT = "wool.__init__"


class Imports(ast.NodeVisitor):
    """What the module `name` imports of `modules`, and which names it takes from the root.

    A package goes by the name of its `__init__`. Importing a module imports the packages it is in.
    """

    def __init__(self, name: str, source: str, modules: set[str]) -> None:
        self.targets: set[str] = set()
        self.from_root: set[str] = set()
        self._modules = modules
        self._package = name.split(".")[:-1]
        self.visit(ast.parse(source))
        self.targets -= {name, ROOT}

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self._package[: len(self._package) - node.level + 1] if node.level else []
        origin = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            self._add(f"{origin}.{alias.name}")
            self._take(origin, alias.name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._take(ast.unparse(node.value), node.attr)
        self.generic_visit(node)

    def _add(self, name: str) -> None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            self.targets |= {prefix, f"{prefix}.__init__"} & self._modules

    def _take(self, origin: str, name: str) -> None:
        if origin == "wool" and not {f"wool.{name}", f"wool.{name}.__init__"} & self._modules:
            self.from_root.add(name)


def read(sources: Path) -> dict[str, Imports]:
    texts = {
        ".".join(path.relative_to(sources).with_suffix("").parts): path.read_text()
        for path in sorted(sources.rglob("*.py"))
    }
    return {name: Imports(name, text, set(texts)) for name, text in texts.items()}


def layer(module: str) -> int:
    for number, row in enumerate(LAYERS):
        if any(fnmatchcase(module, pattern) for pattern in row):
            return number
    raise AssertionError(f"{module} is in no row of LAYERS: add it to one")


def upward(imports: dict[str, Imports]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, found in imports.items()
        for target in sorted(found.targets)
        if layer(target) > layer(module)
    ]


def cycle(imports: dict[str, Imports]) -> list[str]:
    try:
        TopologicalSorter({name: found.targets for name, found in imports.items()}).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def misuses(imports: dict[str, Imports]) -> list[str]:
    return [
        f"{module} uses wool.{name}"
        for module, found in imports.items()
        if module != ROOT
        for name in sorted(found.from_root - AMBIENT)
    ]


def test_imports_point_down() -> None:
    assert upward(read(SOURCES)) == []


def test_imports_form_no_cycle() -> None:
    assert cycle(read(SOURCES)) == []


def test_imports_use_the_root_for_ambient_names_only() -> None:
    assert misuses(read(SOURCES)) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose modules `session` and `pool` break no rule."""
    worker = tmp_path / "wool/runtime/worker"
    worker.mkdir(parents=True)
    for directory in (worker, worker.parent, worker.parent.parent):
        (directory / "__init__.py").touch()
    (worker / "pool.py").write_text("from wool.runtime.worker import session")
    (worker / "session.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import wool\n"
        "if TYPE_CHECKING:\n"
        "    from wool.runtime.worker.pool import WorkerPool\n"
        "wool.__proxy__.get()\n"
    )
    return tmp_path


def test_checks_package_in_order(package: Path) -> None:
    imports = read(package)

    assert (upward(imports), cycle(imports), misuses(imports)) == ([], [], [])


@pytest.mark.parametrize(
    "statement",
    [
        "import wool.runtime.worker.pool",
        "from wool.runtime.worker import pool",
        "from wool.runtime.worker.pool import WorkerPool",
        "from .pool import WorkerPool",
        "from ..worker import pool",
        "def late():\n    from . import pool",
    ],
)
def test_checks_upward_import(package: Path, statement: str) -> None:
    (package / "wool/runtime/worker/session.py").write_text(statement)
    imports = read(package)

    assert upward(imports) == ["wool.runtime.worker.session imports wool.runtime.worker.pool"]
    assert "wool.runtime.worker.session" in cycle(imports)


def test_checks_package_that_imports_its_modules(package: Path) -> None:
    (package / "wool/runtime/worker/__init__.py").write_text("from .pool import WorkerPool")
    imports = read(package)

    assert upward(imports) == ["wool.runtime.worker.__init__ imports wool.runtime.worker.pool"]
    assert "wool.runtime.worker.__init__" in cycle(imports)


@pytest.mark.parametrize("statement", ["from wool import routine", "import wool\nwool.routine"])
def test_checks_misuse_of_the_root(package: Path, statement: str) -> None:
    (package / "wool/runtime/worker/session.py").write_text(statement)

    assert misuses(read(package)) == ["wool.runtime.worker.session uses wool.routine"]


def test_checks_module_without_a_layer(package: Path) -> None:
    (package / "wool/stray.py").touch()
    (package / "wool/runtime/worker/pool.py").write_text("import wool.stray")

    with pytest.raises(AssertionError, match=r"wool\.stray is in no row of LAYERS"):
        upward(read(package))

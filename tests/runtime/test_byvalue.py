"""Modules that workers can't import: by value with the calls of a pool, or named in the error."""

from __future__ import annotations

import json
import json.decoder
import sys
import threading
from contextlib import ExitStack
from textwrap import dedent
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import wool
from tests.programs import Surroundings
from wool.runtime.byvalue import check_modules, registered

if TYPE_CHECKING:
    from collections.abc import Iterator

PLUGIN = """
import wool

class Point:
    def __init__(self, x):
        self.x = x

class Refused(Exception):
    pass

def successor(number):
    return number + 1

@wool.routine
async def point(x):
    return Point(x)

@wool.routine
async def refuse():
    raise Refused("no")

@wool.routine
async def points(count):
    for i in range(count):
        sent = yield Point(i)
        while sent:
            sent = yield sent.x

@wool.routine
async def sum_to(n):
    return n + (await sum_to(n - 1) if n else 0)
"""

IMPORTER = """
import sys
if not hasattr(sys, "is_caller"):
    import absent
class Point:
    pass
"""

HEAD = """
import asyncio, sys
import wool

sys.path.insert(0, "plugins")
import plugin
sys.path.remove("plugins")

@wool.routine
async def identity(value):
    return value, type(value).__module__, "plugin" in sys.modules
"""


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        (surroundings.work / "plugins").mkdir()
        surroundings.write("plugins/plugin.py", PLUGIN)
        surroundings.write("plugins/other.py", "class Point: pass")
        yield surroundings


def lines(surroundings: Surroundings, program: str) -> list[str]:
    """What a program prints that could import a plugin, which its workers can't."""
    path = surroundings.write("program.py", HEAD + dedent(program) + "\nasyncio.run(main())\n")
    ended = surroundings.run("-W", "error", path)
    assert ended.errors == ""
    assert ended.code == 0
    assert surroundings.processes() == []
    return ended.output.splitlines()


def test_all_that_a_module_defines_travels(surroundings: Surroundings) -> None:
    """Classes are the caller's own when they come back."""
    assert lines(
        surroundings,
        """
        @wool.routine
        async def use(number):
            return plugin.successor(number), plugin.Point(number)

        async def main():
            async with wool.WorkerPool(size=2, by_value=[plugin]):
                value, module, imported = await identity(plugin.Point(1))
                print(type(value) is plugin.Point, value.x, module, imported)
                print(type(await plugin.point(2)) is plugin.Point)
                successor, point = await use(3)
                print(successor, type(point) is plugin.Point, point.x)
                print((await identity(plugin.successor))[0](4))
                try:
                    await plugin.refuse()
                except plugin.Refused as exc:
                    print(repr(exc))
                print(await plugin.sum_to(5))
                stream = plugin.points(2)
                print((await anext(stream)).x, await stream.asend(plugin.Point(7)))
                await stream.aclose()
        """,
    ) == [
        "True 1 plugin False",
        "True",
        "4 True 3",
        "5",
        "Refused('no')",
        "15",
        "0 7",
    ]


def test_modules_by_value_while_a_pool_has_them(surroundings: Surroundings) -> None:
    """Also inside a routine, whose pool has them in its turn."""
    assert lines(
        surroundings,
        """
        from cloudpickle import list_registry_pickle_by_value as registry

        @wool.routine
        async def nested():
            sys.path.insert(0, "plugins")
            import plugin
            sys.path.remove("plugins")
            async with wool.WorkerPool(size=1, by_value=["plugin"]):
                return (await plugin.point(9)).x

        async def fails():
            try:
                await plugin.point(1)
            except ModuleNotFoundError as exc:
                print(exc.name)

        async def main():
            async with wool.WorkerPool(size=1):
                await fails()
                async with wool.WorkerPool(size=1, by_value=["plugin"]) as inner:
                    async with wool.WorkerPool(size=1, by_value=[plugin]):
                        print((await plugin.point(1)).x)
                    print((await plugin.point(2)).x, registry())
                await fails()
                print(await nested(), registry())
            try:
                async with wool.WorkerPool(size=1, by_value=[plugin], worker=lambda *a, **k: None):
                    pass
            except TypeError:
                print(registry())
        """,
    ) == ["plugin", "1", "2 {'plugin'}", "plugin", "9 set()", "set()"]


def test_error_names_the_module_that_the_worker_lacks(surroundings: Surroundings) -> None:
    surroundings.write("importer.py", IMPORTER)
    printed = lines(
        surroundings,
        """
        sys.is_caller = True
        import importer
        sys.path += [f"/nowhere/{i}" for i in range(20)]

        @wool.routine
        async def result():
            sys.path.insert(0, "plugins")
            import other
            sys.path.remove("plugins")
            return other.Point()

        @wool.routine
        async def own():
            import absent

        async def main():
            async with wool.WorkerPool(size=1):
                stream = plugin_free()
                await anext(stream)
                for call in (
                    plugin.point(1), identity([plugin.Point(2)]), identity(plugin.successor),
                    stream.asend(plugin.Point(3)), identity(importer.Point()), result(), own(),
                ):
                    try:
                        await call
                    except ModuleNotFoundError as exc:
                        print(exc.name, "|", exc)

        @wool.routine
        async def plugin_free():
            yield (yield)
        """,
    )
    names, texts = zip(*(line.split(" | ") for line in printed), strict=True)
    assert names == (*["plugin"] * 4, "absent", "other", "absent")
    work = surroundings.work
    for text, routine in zip(texts, ("plugin.point", "__main__.identity"), strict=False):
        assert text.startswith(
            f"No module named 'plugin' in the worker that is to run routine {routine}:"
        )
    for text in texts[:4]:
        assert f". Its sys.path is '{work}', " in text
        assert " more and Python's own library. " in text
        assert text.endswith(
            "Make it importable there, or have what it defines travel with the calls: "
            "WorkerPool(by_value=['plugin'])"
        )
    assert " in the worker that runs routine __main__.plugin_free:" in texts[3]
    assert texts[4].startswith("No module named 'absent', which importer imports, in the worker")
    assert texts[5].startswith(
        "No module named 'other' in this program, which is to load a result of __main__.result:"
    )
    for text in texts[4:6]:
        assert text.endswith(". Make it importable there")
    assert texts[6] == "No module named 'absent'"


# What can be given, and the registry


def test_modules_in_any_form() -> None:
    assert check_modules(()) == ()
    assert check_modules([json, "json.decoder"]) == (json, json.decoder)
    assert check_modules(name for name in ("json",)) == (json,)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("json", TypeError, "in a list for example, got 'json'"),
        (json, TypeError, "in a list for example, got <module 'json'"),
        (None, TypeError, "in a list for example, got None"),
        ([json.dumps], TypeError, "modules or names of modules, got <function dumps"),
        (["nosuch"], ValueError, "have been imported, got 'nosuch'"),
        ([ModuleType("json")], ValueError, "have been imported, got <module 'json'>"),
    ],
)
def test_pool_with_something_else(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wool.WorkerPool(size=1, by_value=given)


def registry() -> set[str]:
    names: set[str] = cloudpickle.list_registry_pickle_by_value()
    return names


def test_registration_ends_with_its_last_holder() -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(registered((json, json)))
        second.enter_context(registered((json, threading)))
        assert registry() == {"json", "threading"}
        first.close()
        assert registry() == {"json", "threading"}
    assert registry() == set()


def test_registration_by_others_is_left_to_them() -> None:
    cloudpickle.register_pickle_by_value(json)
    with registered((json, threading)):
        cloudpickle.unregister_pickle_by_value(threading)
        assert registry() == {"json"}
    assert registry() == {"json"}
    cloudpickle.unregister_pickle_by_value(json)


def test_registration_by_many_threads() -> None:
    barrier = threading.Barrier(8)
    interval = sys.getswitchinterval()

    def register() -> None:
        barrier.wait(10)
        for _ in range(500):
            with registered((json,)):
                lacking.append("json" not in registry())

    lacking: list[bool] = []
    threads = [threading.Thread(target=register) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert len(lacking) == 4000
    assert not any(lacking)
    assert registry() == set()

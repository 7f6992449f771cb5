"""Routines in a program: defined in `__main__`, run without an `if __name__` guard."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.programs import Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


def outcome(surroundings: Surroundings, program: str, *, size: int = 2) -> list[str]:
    """The lines that a program prints, `main` being run in a pool; it prints no warning either."""
    head = "import asyncio, gc, os, sys\nfrom contextlib import aclosing\nimport wool\n"
    tail = f"""
async def enter():
    async with wool.WorkerPool(size={size}):
        await main()

asyncio.run(enter())
"""
    path = surroundings.write("program.py", head + dedent(program) + tail)
    ended = surroundings.run("-W", "error", path)
    assert ended.errors == ""
    assert ended.code == 0
    assert surroundings.left() == []
    return ended.output.splitlines()


def test_everything_in_main(surroundings: Surroundings) -> None:
    assert outcome(
        surroundings,
        """
        factor = 2

        @wool.routine
        async def scaled(number):
            return os.getpid(), number * factor

        @wool.routine
        async def stream(to):
            for i in range(to):
                sent = yield i * factor
                if sent:
                    yield sent

        class Base:
            @wool.routine
            async def name(self):
                return type(self).__name__, isinstance(self, Base)

        class Model(Base):
            @classmethod
            @wool.routine
            async def make(cls, number):
                model = cls()
                model.number = number
                return model

            @staticmethod
            @wool.routine
            async def double(number):
                return 2 * number

            @wool.routine
            async def name(self):
                return await super().name()

            @wool.routine
            async def stream(self):
                async for item in stream(self.number):
                    yield item

        async def main():
            global factor
            where, number = await scaled(3)
            print(where != os.getpid(), number)
            factor = 5
            print((await scaled(3))[1], [item async for item in stream(3)])
            async with aclosing(stream(3)) as items:
                print(await anext(items), await items.asend("sent"), await anext(items))
            model = await Model.make(3)
            print(type(model) is Model, await model.name(), await Model.double(4))
            print([item async for item in model.stream()])
        """,
    ) == [
        "True 6",
        "15 [0, 5, 10]",
        "0 sent 5",
        "True ('Model', True) 8",
        "[0, 5, 10]",
    ]


def test_nested_calls_in_main_go_to_the_pool(surroundings: Surroundings) -> None:
    """A01"""
    assert outcome(
        surroundings,
        """
        @wool.routine
        async def leaf():
            return os.getpid()

        @wool.routine
        async def leaves(count):
            for _ in range(count):
                yield await leaf()

        @wool.routine
        async def outer():
            singles = await asyncio.gather(*(leaf() for _ in range(4)))
            return set(singles) | {item async for item in leaves(4)}

        @wool.routine
        async def fib(n):
            return n if n < 2 else sum(await asyncio.gather(fib(n - 1), fib(n - 2)))

        class Method:
            @wool.routine
            async def outer(self):
                return await outer()

        async def main():
            print(len(await outer()), len(await Method().outer()), await fib(7))
        """,
    ) == ["2 2 13"]


def test_exceptions_of_main_on_both_hops(surroundings: Surroundings) -> None:
    """A11"""
    assert outcome(
        surroundings,
        """
        class Mine(Exception):
            def __init__(self, text, *, code):
                super().__init__(text)
                self.code = code

        class Other(Mine):
            pass

        @wool.routine
        async def fail(hops):
            if hops:
                await fail(hops - 1)
            raise Other("failed", code=hops)

        @wool.routine
        async def catch(hops):
            try:
                await fail(hops)
            except Mine as exc:
                return type(exc) is Other, exc.args, exc.code

        @wool.routine
        async def stream():
            try:
                yield 1
            except Mine as exc:
                yield exc.code
            try:
                await fail(1)
            except Mine as exc:
                raise Mine("again", code=7) from exc

        async def main():
            for hops in range(3):
                try:
                    await fail(hops)
                except Mine as exc:
                    print(type(exc) is Other, exc.args, exc.code)
                print(await catch(hops))
            items = stream()
            print(await anext(items), await items.athrow(Other("in", code=5)))
            try:
                await anext(items)
            except Mine as exc:
                print(type(exc) is Mine, exc.code, type(exc.__cause__) is Other)
        """,
    ) == ["True ('failed',) 0", "(True, ('failed',), 0)"] * 3 + ["1 5", "True 7 True"]


def test_closures_and_changing_globals_in_main(surroundings: Surroundings) -> None:
    assert outcome(
        surroundings,
        """
        settings = {"level": 1}
        hits = 0

        def helper():
            return settings["level"]

        def make(word):
            @wool.routine
            async def routine():
                global hits
                hits += 1
                return word, helper(), hits
            return routine

        async def main():
            global helper
            first, second = make("a"), make("b")
            print(await first(), await second())
            settings["level"] = 2
            print(await first(), await first())
            helper = lambda: "rebound"
            print(await second(), hits)
        """,
        size=1,
    ) == ["('a', 1, 1) ('b', 1, 1)", "('a', 2, 1) ('a', 2, 1)", "('b', 'rebound', 1) 0"]


def test_streams_left_to_the_end_of_the_program(surroundings: Surroundings) -> None:
    """A23, A58: whatever is left open, the end is a quiet one."""
    assert outcome(
        surroundings,
        """
        kept = []

        @wool.routine
        async def stream():
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0.01)
                print("closed", flush=True)

        async def main():
            kept.append(stream())
            print(await anext(kept[0]), flush=True)
            async for item in stream():
                break
            gc.collect()
        """,
    ) == ["1", "closed", "closed"]


def test_module_that_workers_can_not_import(surroundings: Surroundings) -> None:
    """A04: at the call, and no worker is less."""
    said = (
        "No module named 'hidden_module' in the worker that is to run routine hidden_module.hidden"
    )
    surroundings.write("elsewhere.py", "import wool\n@wool.routine\nasync def hidden(): pass\n")
    assert outcome(
        surroundings,
        """
        import importlib.util
        spec = importlib.util.spec_from_file_location("hidden_module", "elsewhere.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["hidden_module"] = module
        spec.loader.exec_module(module)

        @wool.routine
        async def pid():
            return os.getpid()

        async def main():
            before = {await pid() for _ in range(4)}
            for _ in range(3):
                try:
                    await module.hidden()
                except ModuleNotFoundError as exc:
                    print(exc.name, "|", str(exc).partition(":")[0])
            print(before == {await pid() for _ in range(4)})
        """,
    ) == [f"hidden_module | {said}"] * 3 + ["True"]


def test_call_after_the_pool_was_left(surroundings: Surroundings) -> None:
    assert outcome(
        surroundings,
        """
        @wool.routine
        async def one():
            return 1

        async def twice():
            async with wool.WorkerPool(size=1):
                print(await one())
            try:
                await one()
            except RuntimeError as exc:
                print(str(exc).partition(":")[0])

        async def main():
            print(await one())

        asyncio.run(twice())
        """,
        size=1,
    ) == [
        "1",
        "No pool is active for routine __main__.one",
        "1",
    ]

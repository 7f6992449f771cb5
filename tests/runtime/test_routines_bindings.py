"""Functions, closures, and the three kinds of methods."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import warm_pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def pool() -> AsyncIterator[wool.WorkerPool]:
    async with warm_pool() as pool:
        yield pool


class Account:
    kind = "plain"

    def __init__(self, balance: int) -> None:
        self.balance = balance

    @wool.routine
    async def pay_in(self, *amounts: int, fee: int = 0) -> tuple[int, int]:
        self.balance += sum(amounts) - fee
        return os.getpid(), self.balance

    @wool.routine
    async def history(self, steps: int) -> AsyncGenerator[tuple[str, int], int]:
        for _ in range(steps):
            amount = yield self.kind, self.balance
            self.balance += amount or 0

    @classmethod
    @wool.routine
    async def describe(cls, *, loud: bool = False) -> tuple[int, type[Account], str]:
        return os.getpid(), cls, cls.kind.upper() if loud else cls.kind

    @classmethod
    @wool.routine
    async def kinds(cls) -> AsyncGenerator[tuple[type, str], None]:
        for each in cls.__mro__[:-1]:
            yield each, vars(each)["kind"]

    @staticmethod
    @wool.routine
    async def add(a: int, b: int) -> tuple[int, int]:
        return os.getpid(), a + b

    @staticmethod
    @wool.routine
    async def count(to: int) -> AsyncGenerator[int, None]:
        for i in range(to):
            yield i

    @wool.routine
    async def __secret(self) -> str:
        return "secret"

    async def secret(self) -> str:
        return await self.__secret()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Account) and other.balance == self.balance

    __hash__ = None  # type: ignore[assignment]

    class Inner:
        @wool.routine
        async def where(self) -> str:
            return type(self).__qualname__


class Savings(Account):
    kind = "savings"

    @wool.routine
    async def pay_in(self, *amounts: int, fee: int = 0) -> tuple[int, int]:
        where, balance = await super().pay_in(*amounts, fee=fee + 1)
        assert self.balance != balance, "it was a copy that was changed"
        return where, balance


async def test_instance_method_works_on_a_copy() -> None:
    """A10"""
    account = Account(10)
    where, balance = await account.pay_in(1, 2, fee=5)
    assert where != os.getpid()
    assert balance == 8
    assert account.balance == 10
    assert (await Account.pay_in(account, 3))[1] == 13


async def test_instance_method_that_is_a_generator() -> None:
    stream = Account(1).history(3)
    assert await anext(stream) == ("plain", 1)
    assert await stream.asend(4) == ("plain", 5)
    assert [item async for item in stream] == [("plain", 5)]


async def test_overridden_method_calls_that_of_its_base() -> None:
    assert (await Savings(10).pay_in(5))[1] == 14
    assert [item async for item in Savings(3).history(1)] == [("savings", 3)]


async def test_class_method() -> None:
    for cls, kind in ((Account, "plain"), (Savings, "savings")):
        where, which, described = await cls.describe()
        assert where != os.getpid()
        assert (which, described) == (cls, kind)
        assert (await cls(1).describe(loud=True))[2] == kind.upper()
    kinds = [item async for item in Savings.kinds()]
    assert kinds == [(Savings, "savings"), (Account, "plain")]


async def test_static_method() -> None:
    for owner in (Account, Account(1), Savings):
        where, total = await owner.add(1, b=2)
        assert where != os.getpid()
        assert total == 3
        assert [item async for item in owner.count(3)] == [0, 1, 2]


async def test_method_with_a_mangled_name() -> None:
    assert await Account(1).secret() == "secret"


async def test_method_of_a_nested_class() -> None:
    assert await Account.Inner().where() == "Account.Inner"


async def test_method_of_a_local_class() -> None:
    base = 5

    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

        @wool.routine
        async def total(self, more: int) -> int:
            return base + self.number + more

        @classmethod
        @wool.routine
        async def make(cls, number: int) -> Any:
            return cls(number)

        @staticmethod
        @wool.routine
        async def twice(number: int) -> int:
            return 2 * base * number

    assert await Local(1).total(2) == 8
    assert await Local.twice(2) == 20
    made = await Local.make(4)
    assert type(made) is Local
    assert made.number == 4


async def test_closure_sees_what_it_refers_to_at_the_call() -> None:
    offset = 1
    seen = [0]

    @wool.routine
    async def shifted(number: int) -> tuple[int, int, list[int]]:
        return os.getpid(), number + offset, seen

    @wool.routine
    async def stream(to: int) -> AsyncGenerator[int, None]:
        for i in range(to):
            yield i + offset

    where, number, _ = await shifted(1)
    assert (where != os.getpid(), number) == (True, 2)
    offset = 10
    seen.append(1)
    assert (await shifted(1))[1:] == (11, [0, 1])
    assert [item async for item in stream(2)] == [10, 11]
    offset = 20
    assert [item async for item in stream(2)] == [20, 21]


async def test_closure_does_not_keep_what_it_changes() -> None:
    """Each call has a copy, also where a previous one ran."""
    count = 0

    @wool.routine
    async def increment() -> int:
        nonlocal count
        count += 1
        return count

    assert {await increment() for _ in range(6)} == {1}
    assert count == 0


async def test_closure_that_calls_itself_and_others() -> None:
    @wool.routine
    async def even(number: int) -> bool:
        return number == 0 or await odd(number - 1)

    @wool.routine
    async def odd(number: int) -> bool:
        return number != 0 and await even(number - 1)

    assert await even(6)
    assert not await even(5)


def logged(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return "logged", await function(*args)

    return wrapper


@logged
@wool.routine
async def decorated_outside(number: int) -> tuple[int, int]:
    return os.getpid(), number


@wool.routine
@logged
async def decorated_inside(number: int) -> tuple[int, int]:
    return os.getpid(), number


@wool.routine
@wool.routine
async def decorated_twice(number: int) -> tuple[int, int]:
    return os.getpid(), number


async def test_other_decorators() -> None:
    for routine in (decorated_outside, decorated_inside):
        word, (where, number) = await routine(3)
        assert (word, number) == ("logged", 3)
        assert where != os.getpid()
    where, number = await decorated_twice(3)
    assert where != os.getpid()
    assert number == 3
    assert (await functools.partial(decorated_twice, 4)())[1] == 4

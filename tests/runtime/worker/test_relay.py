from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from tests.support import eventually
from wool.runtime.worker.relay import Relay


@pytest.fixture(params=["eventfd", "pipe"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("there is no eventfd here")


@pytest.mark.usefixtures("ends")
async def test_posts_of_several_threads_arrive_each_thread_s_in_order() -> None:
    relay = Relay(asyncio.get_running_loop())
    arrived: list[tuple[int, int]] = []
    me = threading.get_ident()

    def post(thread: int) -> None:
        for i in range(5_000):
            relay.post(lambda i=i: arrived.append((thread, i)))  # type: ignore[misc]

    threads = [threading.Thread(target=post, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    await eventually(lambda: len(arrived) == 15_000)
    for thread in threads:
        thread.join()
    assert [[i for n, i in arrived if n == thread] for thread in range(3)] == [
        list(range(5_000))
    ] * 3
    relay.post(lambda: arrived.append((threading.get_ident(), 0)))
    await eventually(lambda: arrived[-1] == (me, 0))
    relay.close()


@pytest.mark.usefixtures("ends")
async def test_what_follows_a_callback_that_raises_is_called() -> None:
    loop = asyncio.get_running_loop()
    seen: list[Any] = []
    loop.set_exception_handler(lambda _, context: seen.append(type(context["exception"])))
    relay = Relay(loop)
    relay.post(lambda: 1 // 0)
    relay.post(lambda: seen.append("next"))
    await eventually(lambda: seen == [ZeroDivisionError, "next"])
    relay.close()


@pytest.mark.usefixtures("ends")
async def test_closed_relay_drops_what_is_posted() -> None:
    relay = Relay(asyncio.get_running_loop())
    called: list[int] = []
    relay.post(lambda: called.append(1))
    relay.close()
    relay.close()
    relay.post(lambda: called.append(2))
    await asyncio.sleep(0)
    assert called == []

"""What `wool top` shows, by the keys that were pressed."""

from __future__ import annotations

import io
from dataclasses import replace
from uuid import UUID

import pytest
from rich.console import Console

from tests.runtime.worker.memory import made_up
from wool import RunningTask, WorkerStatus
from wool.cli.finding import Sight
from wool.cli.view import Request, Row, View

PATH = "/usr/lib/python3/asyncio/tasks.py"


def row(number: int, host: str = "a", former: int | None = None, **changes: object) -> Row:
    worker = made_up(uid=UUID(int=number << 96), address=f"{host}:1", tags=frozenset({"gpu"}))
    status = WorkerStatus(worker, False, 3700, 5, 0, 0, 0, 0, 1, 0.002, 10, 2**26)
    now = Sight(worker, replace(status, **changes))  # type: ignore[arg-type]
    before = None if former is None else Sight(worker, replace(status, done=former, cpu=9.5))
    return Row(now, before, 2.0)


def shown(view: View, height: int = 40) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(view.render(height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def number_of(view: View) -> int:
    assert view.selected is not None
    return view.selected.uid.int >> 96


@pytest.fixture
def view() -> View:
    view = View("local:x")
    view.update([row(2, "b", done=1), row(3, done=5), row(1, done=9, former=5)])
    return view


def test_workers_are_shown_by_host(view: View) -> None:
    lines = shown(view).splitlines()
    assert lines[0].startswith("wool top  local:x  3 workers on 2 hosts, 0 calls running, 2/s")
    workers = [line.split() for line in lines if "00000000"[:7] in line]
    assert [words[0] for words in workers] == ["a", "00000003", "b"]
    assert " ".join(workers[0]) == "a 00000001 gpu 1 h 01 m 0 9 0 2 2 ms 25 % 64 MiB 5 s"


def test_nobody_is_there() -> None:
    view = View("local:x")
    assert view.press("d") is view.press("x") is view.press("j") is None
    assert "No workers yet" in shown(view)


def test_selection_moves_and_follows_its_worker(view: View) -> None:
    assert number_of(view) == 1
    for key, expected in (("k", 1), ("j", 3), ("down", 2), ("j", 2), ("up", 3)):
        view.press(key)
        assert number_of(view) == expected
    view.update([row(3, "z"), row(1)])
    assert number_of(view) == 3
    view.update([row(1)])
    assert number_of(view) == 1


def test_order_within_a_host(view: View) -> None:
    def order() -> list[int]:
        lines = shown(view).splitlines()
        return [n for line in lines for n in (1, 2, 3) if f"0000000{n}" in line]

    view.update([row(1, done=1), row(2, done=7), row(3, done=3)])
    assert order() == [1, 2, 3]
    for _ in range(3):
        view.press("s")
    assert "done▾" in shown(view)
    assert order() == [2, 3, 1]
    view.press("left")
    assert "running▾" in shown(view)


def test_draining_is_done_at_once_and_stopping_when_confirmed(view: View) -> None:
    assert view.selected is not None
    sight = view.selected.sight
    assert view.press("d") == Request("drain", sight)
    assert view.press("x") is None
    assert "Cancel what 00000001 on a runs, and stop it? y/n" in shown(view)
    assert view.press("n") is None
    assert "q quit" in shown(view)
    view.press("x")
    assert view.press("y") == Request("stop", sight)


def test_worker_that_says_nothing(view: View) -> None:
    silent = Row(Sight(made_up(address="c:1"), None, "connection refused"))
    view.update([silent])
    view.press("t")
    assert "silent" in shown(view)
    assert "Asking" in shown(view)
    view.update([silent], silent.sight)
    assert "connection refused" in shown(view)


def test_tasks_of_the_selected_one_as_far_as_there_is_room(view: View) -> None:
    stack = f'  File "{PATH}", line 1, in sleep\n    return await future\n'
    task = RunningTask(UUID(int=1), "app.nap:3", None, 61.0, stack)
    busy = row(1, running=1, tasks=(task,))
    view.press("t")
    view.update([busy], busy.sight)
    text = shown(view)
    assert "00000001 on a runs 1 task\napp.nap:3, for 1 m 01 s" in text.replace(" \n", "\n")
    assert 'File ".../asyncio/tasks.py", line 1' in text
    many = row(1, running=9, tasks=(task,) * 9)
    view.update([many], many.sight)
    assert "more lines" in shown(view, height=24)


def test_more_workers_than_lines_are_shown_around_the_selected_one() -> None:
    view = View("local:x")
    view.update(row(number) for number in range(50))
    for _ in range(30):
        view.press("j")
    text = shown(view, height=20)
    assert f"{30:08x}" in text
    assert text.count("gpu") == 12
    assert len(text.splitlines()) < 20

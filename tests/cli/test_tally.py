"""What workers have counted, kept when they are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.worker.memory import made_up
from wool import WorkerStatus
from wool.cli.tally import Tally


def status(**changes: object) -> WorkerStatus:
    made = WorkerStatus(made_up(), False, 10, 5, 0, 0, 0, 0, 1, 0.002, 10, 2**26)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_replacement_counts_on() -> None:
    tally = Tally()
    first = status(done=5, failed=2, refused=1, cpu=1.5)
    tally.see(0, first, leaving=False)
    tally.see(0, status(done=1, cpu=0.25), leaving=False)
    tally.see(1, status(done=7), leaving=False)
    for _ in range(2):
        assert tally.sums()[0] == {"done": 6, "failed": 2, "refused": 1, "cpu": 1.75}
        assert tally.sums()[1]["done"] == 7
        tally.settle(first.worker.uid)


@pytest.mark.parametrize(
    ("leaving", "draining", "done"), [(False, False, 5), (True, False, 8), (False, True, 8)]
)
def test_last_tasks_of_one_that_left_have_ended(leaving: bool, draining: bool, done: int) -> None:
    tally = Tally()
    last = status(done=5, running=3, draining=draining)
    tally.see(0, last, leaving=leaving)
    assert tally.sums()[0]["done"] == 5
    tally.settle(last.worker.uid)
    assert tally.sums()[0]["done"] == done


def test_answer_that_was_overtaken_is_not_counted() -> None:
    tally = Tally()
    late = status(done=5)
    tally.see(0, replace(late, done=6, uptime=11), leaving=False)
    tally.see(0, late, leaving=False)
    assert tally.sums()[0]["done"] == 6

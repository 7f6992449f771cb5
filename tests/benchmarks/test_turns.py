"""One turn of a column, whatever it does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks import turns
from benchmarks.columns import Column
from tests.benchmarks.drivers import PID_FILE
from tests.support import eventually

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True, slots=True)
class _Column(Column):
    def command(self) -> list[str]:
        code = (
            "from benchmarks.drivers.serving import serve_module; "
            f"serve_module({self.module!r}, {self.driver!r})"
        )
        return [str(self.python), "-c", code]


def _take(driver: str, module: str = "tests.benchmarks.drivers", deadline: float = 60,
          python: str = sys.executable) -> turns.Outcome:  # fmt: skip
    column = _Column("test", "test", module, driver, python=Path(python))
    return turns.take(column, "latency", {"calls": 10}, deadline)


def test_turn_reports_metrics_and_versions() -> None:
    outcome = _take("Local")

    assert outcome.metrics["p50_ms"] > 0
    assert "python" in outcome.versions
    assert not outcome.failure
    assert not outcome.absent


def test_turn_of_a_column_that_can_not_do_it_has_a_reason() -> None:
    assert _take("Incapable").absent == "not this one"


def test_turn_without_its_package_has_a_reason() -> None:
    assert _take("Local", module="no_such_peer").absent == "no_such_peer is not installed"


def test_turn_without_its_interpreter_has_a_reason(tmp_path: Path) -> None:
    assert "is not there" in _take("Local", python=str(tmp_path / "python")).absent


def test_turn_that_fails_has_the_error_and_the_log() -> None:
    outcome = _take("Broken")

    assert outcome.failure == "OSError: broken on purpose"
    assert "Traceback" in outcome.log


def test_turn_whose_process_ends_has_failed() -> None:
    assert _take("Gone").failure == "the driver ended without an answer"


async def test_turn_that_hangs_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pid"
    monkeypatch.setenv(PID_FILE, str(file))
    monkeypatch.setattr(turns, "FAREWELL", 0.1)

    outcome = _take("Hanging", deadline=3)

    assert outcome.failure == "no answer within 3 s"
    await eventually(lambda: not _runs(int(file.read_text())))


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

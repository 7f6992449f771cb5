"""The command line."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import main, parse
from benchmarks.results import Results
from benchmarks.runner import Progress, rotated

if TYPE_CHECKING:
    from pathlib import Path


def test_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "latency,speed"])

    assert "speed: not one of latency" in capsys.readouterr().err


@pytest.mark.parametrize(("p50", "code"), [(1.0, 0), (3.0, 1)])
def test_check_of_an_earlier_run_sets_the_exit_code(p50: float, code: int, tmp_path: Path) -> None:
    results = Results(rounds=1, versions={"ours": {}})
    results.add("latency", "ours", 0, {"p50_ms": p50})
    results.add("latency", "floor", 0, {"p50_ms": 1.0})
    path = tmp_path / "results.json"
    path.write_text(results.to_json())

    assert main(["--from", str(path), "--check"]) == code


def test_each_round_starts_with_another_column() -> None:
    assert [rotated("abc", turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]


def test_progress_tells_where_a_run_is() -> None:
    file = io.StringIO()
    progress = Progress(3, file)
    progress.show("latency, round 1, ours")
    progress.skip(1)
    progress.show("latency, round 1, ray")
    progress.end()

    first, second = file.getvalue().splitlines()
    assert first == "[1/3] latency, round 1, ours"
    assert second.startswith("[2/2] latency, round 1, ray, 0 min 0")


@pytest.mark.slow
def test_quick_run_measures_ours_and_the_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"

    main(["--quick", "--only", "latency", "--columns", "ours,floor", "--output", str(path)])

    results = Results.read(path)
    assert results.absolute("latency", "p50_ms", "ours")
    assert results.absolute("latency", "p50_ms", "floor")
    assert "latency p50" in capsys.readouterr().out
    assert path.with_suffix(".svg").read_text().startswith("<svg")

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = {"cryptography", "multiprocessing", "numpy", "watchdog", "zeroconf"}


def test_import_wool_loads_nothing_heavy() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}

    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, wool; print(*sys.modules)"],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()

    assert "wool" in loaded
    assert HEAVY.isdisjoint(loaded)

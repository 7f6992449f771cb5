from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def test_stamp_equals_the_declared_floor_of_protobuf() -> None:
    """A82: the declared floor can load it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = {
        requirement.name: requirement for requirement in map(Requirement, project["dependencies"])
    }
    floor = [part.version for part in requirements["protobuf"].specifier if part.operator == ">="]
    generated = (ROOT / "src/wool/protocol/wire_pb2.py").read_text()

    stamp = re.findall(r"^# Protobuf Python Version: (\S+)$", generated, re.MULTILINE)

    assert stamp == floor

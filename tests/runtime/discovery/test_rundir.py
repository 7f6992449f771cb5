from __future__ import annotations

import os
import stat
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from wool.runtime.rundir import runtime_directory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_runtime_directory_is_private(base: Path) -> None:
    path = runtime_directory()

    assert path == base / "wool"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert runtime_directory() == path


@pytest.mark.parametrize("value", ["", "relative", "/does/not/exist"])
def test_runtime_directory_without_usable_base(
    base: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)

    assert runtime_directory() == base / f"wool-{os.geteuid()}"


@pytest.mark.parametrize("kind", ["open", "file", "link", "stranger"])
def test_runtime_directory_refuses_what_is_not_private(
    base: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = base / "wool"
    match kind:
        case "open":
            path.mkdir()
            path.chmod(0o755)
        case "file":
            path.touch(mode=0o700)
        case "link":
            (base / "elsewhere").mkdir(mode=0o700)
            path.symlink_to(base / "elsewhere")
        case "stranger":
            path.mkdir(mode=0o700)
            monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)

    with pytest.raises(PermissionError, match="must be a directory owned by user"):
        runtime_directory()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_runtime_directory_that_can_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can make one there, not even root."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    with pytest.raises(FileNotFoundError, match=r"point XDG_RUNTIME_DIR to .*: '/proc/wool'"):
        runtime_directory()

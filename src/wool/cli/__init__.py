"""The command line, `wool` or `python -m wool`. It takes the packages of the extra `wool[cli]`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final, NoReturn

PACKAGES: Final = ("click", "psutil", "rich")


def main() -> NoReturn:
    """Run the command that the arguments name; ends the process."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        sys.exit(f"The wool command needs {', '.join(missing)}: python -m pip install 'wool[cli]'")
    from wool.cli.commands import wool

    sys.exit(wool(prog_name="wool"))

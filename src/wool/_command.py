"""How the command `wool` takes an interruption while it imports what it needs.

A program that imports wool gets its `KeyboardInterrupt` as always.
"""

from __future__ import annotations

import os
import signal
import sys


def end_when_interrupted() -> None:
    """If this process is the command, have SIGINT end it, without a traceback."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_when_interrupted() -> None:
    """Have SIGINT raise `KeyboardInterrupt` again, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    if sys.argv[0] == "-m":  # Python sets it to a path when it has found the module.
        return sys.orig_argv[-len(sys.argv)] in ("wool", "-mwool")
    return os.path.basename(sys.argv[0]) == "wool"

"""Logging to standard error, as text or as JSON, of the command and of its workers alike."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """An object on a line: time (RFC 3339, UTC), level, logger, message, process, exception."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def line(message: str, format: str) -> str:
    """What is said on standard output."""
    record = logging.LogRecord("wool.cli", logging.INFO, "", 0, message, (), None)
    return JsonFormatter().format(record) if format == "json" else message


def set_up(level: str, format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"{category.__name__}: {message}"


def begin_worker(level: str, format: str, modules: Iterable[str]) -> None:
    """What a worker does before it serves."""
    set_up(level, format)
    for module in modules:
        import_module(module)

"""Where the tasks of a routine loop are."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
from inspect import isasyncgen
from typing import TYPE_CHECKING, Any

from wool.runtime.worker import executor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from wool.runtime.worker.executor import RoutineLoop


def stack_of(task: asyncio.Task[Any], routines: RoutineLoop) -> str:
    """Where a task of the routine loop is, without the frames that run it. From any thread."""
    if asyncio.current_task(routines.loop) is task:
        frames = list(_thread_frames(routines))
    else:
        frames = list(_awaited_frames(task.get_coro()))
    while frames and frames[0].f_code.co_filename in executor.OWN_FILES:
        del frames[0]
    lines = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(lines.format())


def _thread_frames(routines: RoutineLoop) -> Iterator[FrameType]:
    """What the routine loop runs right now, from the task's own first frame on."""
    frame = sys._current_frames().get(routines.thread_id or 0)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    start = next((i for i, each in enumerate(frames) if each.f_code is executor.RUN), 0)
    yield from frames[start:]


def _awaited_frames(awaited: Any) -> Iterator[FrameType]:
    """Of a coroutine, of what it awaits, and so on."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield frame
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        else:  # A step of an async generator doesn't say of which.
            referents = gc.get_referents(awaited)
            awaited = next((each for each in referents if isasyncgen(each)), None)

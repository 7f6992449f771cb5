"""What a worker says of itself when it is asked."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from wool import protocol


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task that a worker runs.

    `tag` says where its routine is defined, `caller` which task has called it (None: none has),
    `seconds` for how long it has run, and `stack` where it is, as Python formats stacks.
    """

    id: UUID
    tag: str
    caller: UUID | None
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """How a worker is.

    `draining` tells that it takes no more tasks. `uptime` is for how many seconds it has served,
    `idle` for how many it has had no task. `running`, `done`, `failed` (of those done, which raised
    something) and `refused` count tasks, `sessions` the event loops that call it. `loop_lag` is how
    many seconds its routine loop took to answer when last asked, or has not answered for. `cpu` is
    the processor time that its process has used, in seconds, `memory` what is resident of it, in
    bytes. `tasks` are those that run, the longest first, if they were asked for.
    """

    worker: WorkerMetadata
    draining: bool
    uptime: float
    idle: float
    running: int
    done: int
    failed: int
    refused: int
    sessions: int
    loop_lag: float
    cpu: float
    memory: int
    tasks: tuple[RunningTask, ...] = ()

    @classmethod
    def from_protobuf(cls, message: protocol.Status) -> WorkerStatus:
        return cls(
            worker=WorkerMetadata.from_protobuf(message.worker),
            draining=message.draining,
            uptime=message.uptime,
            idle=message.idle,
            running=message.running,
            done=message.done,
            failed=message.failed,
            refused=message.refused,
            sessions=message.sessions,
            loop_lag=message.loop_lag,
            cpu=message.cpu,
            memory=message.memory,
            tasks=tuple(map(_from_protobuf, message.tasks)),
        )


def _from_protobuf(task: protocol.RunningTask) -> RunningTask:
    caller = UUID(bytes=task.caller) if task.caller else None
    return RunningTask(UUID(bytes=task.id), task.tag, caller, task.seconds, task.stack)


def resident_memory() -> int:
    """Bytes of this process that are resident; where the system doesn't say, the most so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # It has to be loaded only where there is no /proc.

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

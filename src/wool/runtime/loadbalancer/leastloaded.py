"""A load balancer for calls that differ much in length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wool.runtime.loadbalancer.base import first_to_take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from uuid import UUID

    from wool.runtime.loadbalancer.base import Entry, LoadBalancerContextLike
    from wool.runtime.routine.task import Task


class LeastLoadedLoadBalancer:
    """The next call goes to the worker that has the fewest of this proxy's calls in flight.

    Those with equally few take turns, in order of admission. What others have a worker do is not
    known and does not count. A call tries each worker at most once, of those there when it began.
    To choose takes time in proportion to the number of workers.
    """

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[LoadBalancerContextLike, UUID] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def dispatch(
        self, task: Task, *, context: LoadBalancerContextLike, timeout: float | None = None
    ) -> Coroutine[Any, Any, AsyncIterator[Any]]:
        return first_to_take(task, self._choices(context), context, timeout)

    def _choices(self, context: LoadBalancerContextLike) -> Iterator[Entry]:
        untried = {metadata.uid for metadata in context.workers}
        while entries := [entry for entry in context.workers.items() if entry[0].uid in untried]:
            choice = self._choose(context, entries)
            untried.remove(choice[0].uid)
            yield choice

    def _choose(self, context: LoadBalancerContextLike, entries: list[Entry]) -> Entry:
        last = self._last.get(context)
        after = next((i for i, (each, _) in enumerate(entries, 1) if each.uid == last), 0)
        choice = min(entries[after:] + entries[:after], key=_in_flight)
        self._last[context] = choice[0].uid
        return choice


def _in_flight(entry: Entry) -> int:
    return entry[1].in_flight

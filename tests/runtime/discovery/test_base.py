from __future__ import annotations

import pickle

from tests.conformance.discovery import gpu, make_worker
from wool.runtime.discovery.base import Discovery, DiscoveryEvent, PredicateFunction
from wool.runtime.discovery.local import LocalPublisher, LocalSubscriber


class Delegating(Discovery):
    @property
    def publisher(self) -> LocalPublisher:
        return LocalPublisher("a")

    def subscribe(self, filter: PredicateFunction | None = None) -> LocalSubscriber:
        return LocalSubscriber("a", filter=filter or gpu)


def test_subscriber_is_the_default_subscription() -> None:
    subscriber = Delegating().subscriber

    assert isinstance(subscriber, LocalSubscriber)
    assert subscriber.filter is gpu


def test_event_picklable() -> None:
    event = DiscoveryEvent("worker-added", make_worker())

    assert pickle.loads(pickle.dumps(event)) == event

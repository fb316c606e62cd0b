"""Ask all shards at once, each through one of its replicas, and through another replica when the first is
slow. Nobody waits for an error: a call to a machine that was lost hangs long before it raises.

    hedge     after the time that 95 of 100 such calls of this shard took, the next replica is asked too
    suspect   a replica that was slower than its hedge, or failed, is asked last until it answers again
    lost      a shard of which every replica failed, or none answered before the deadline
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geoloc_fast.cluster.executor import Worker

__all__ = ["Group", "ask"]

log = logging.getLogger("geoloc_fast.cluster")

_FIRST_HEDGE_S = 0.1  # until calls were measured
_LEAST_HEDGE_S = 0.02
_MEASURED = 16  # calls from which on a quantile is taken
_KNOCK_S = 0.5  # between two looks at a replica that is suspect
_KEPT = 256


@dataclass
class _Replica:
    worker: Worker
    suspect: bool = False
    knock: Future[Any] | None = None
    knocked: float = 0.0

    def doubt(self, why: str, level: int = logging.WARNING) -> None:
        if not self.suspect:
            log.log(level, "%s: %s; the other replicas are asked first", self.worker.name, why)
        self.suspect = True

    def knock_again(self) -> None:
        """Looks whether it answers again; nobody waits for it."""
        now = time.monotonic()
        if (self.knock is None or self.knock.done()) and now - self.knocked > _KNOCK_S:
            self.knocked = now
            self.knock = self.worker.call("opened")
            self.knock.add_done_callback(self._heard)

    def _heard(self, future: Future[Any]) -> None:
        if future.exception() is None:
            if self.suspect:
                log.info("%s: answers again", self.worker.name)
            self.suspect = False


@dataclass
class Group:
    """The replicas of one shard."""

    name: str
    replicas: list[_Replica]
    counts: Counter[str] = field(default_factory=Counter)
    """Calls, hedges, failures (of a replica) and losses (of the shard)."""
    took: dict[tuple[str, int], deque[float]] = field(default_factory=dict)
    """Seconds of the last calls, by method and size."""
    _turn: int = 0

    @classmethod
    def of(cls, name: str, workers: Sequence[Worker]) -> Group:
        return cls(name, [_Replica(worker) for worker in workers])

    def ordered(self) -> list[_Replica]:
        """As they are to be asked: in turn, those that are suspect last."""
        self._turn += 1
        turn = self._turn % len(self.replicas)
        found = sorted(self.replicas[turn:] + self.replicas[:turn], key=lambda replica: replica.suspect)
        for replica in found:
            if replica.suspect:
                replica.knock_again()
        return found

    def hedge_s(self, kind: tuple[str, int]) -> float:
        took = self.took.get(kind, ())
        if len(took) < _MEASURED:
            return _FIRST_HEDGE_S
        return max(_LEAST_HEDGE_S, float(np.quantile(np.array(took), 0.95)))

    def measured(self, kind: tuple[str, int], seconds: float) -> None:
        self.took.setdefault(kind, deque(maxlen=_KEPT)).append(seconds)


@dataclass
class _Asked:
    """A call to one shard, on its way."""

    group: Group
    args: tuple[Any, ...]
    left: list[_Replica]
    running: dict[Future[Any], tuple[_Replica, float]] = field(default_factory=dict)
    hedge_at: float = 0.0
    reason: str = "did not answer in time"

    def late_ms(self) -> float:
        """Since the last call was sent."""
        return 1000 * (time.monotonic() - max(began for _, began in self.running.values()))

    def send(self, method: str, kind: tuple[str, int]) -> None:
        now, replica = time.monotonic(), self.left.pop(0)
        self.group.counts["calls"] += 1
        self.running[replica.worker.call(method, *self.args)] = replica, now
        self.hedge_at = now + self.group.hedge_s(kind)


def ask(
    groups: Mapping[int, Group], method: str, args: Mapping[int, tuple[Any, ...]], until: float, size: int = 1
) -> tuple[dict[int, Any], dict[int, str]]:
    """(what each shard answered, why the others did not), by their numbers.

    Args:
        groups, args: the shards and what each is given.
        until: of `time.monotonic`.
        size: of the call, which its time depends on.
    """
    kind = method, size.bit_length()
    asked = {number: _Asked(group, args[number], group.ordered()) for number, group in groups.items()}
    answers: dict[int, Any] = {}
    lost: dict[int, str] = {}
    owner: dict[Future[Any], int] = {}

    def send(number: int) -> None:
        asked[number].send(method, kind)
        owner.update(dict.fromkeys(asked[number].running, number))

    for number in asked:
        send(number)
    while len(answers) + len(lost) < len(asked):
        open_ = [number for number in asked if number not in answers and number not in lost]
        waiting = [future for number in open_ for future in asked[number].running]
        hedges = [asked[number].hedge_at for number in open_ if asked[number].left]
        now = time.monotonic()
        done, _ = wait(waiting, max(0.0, min([until, *hedges]) - now), FIRST_COMPLETED)
        now = time.monotonic()
        for future in done:
            number = owner[future]
            one = asked[number]
            replica, began = one.running.pop(future)
            error = future.exception()
            if error is None and number not in answers:
                answers[number] = future.result()
                one.group.measured(kind, now - began)
                replica.suspect = False
                for other, _ in one.running.values():
                    other.doubt("was slower than another replica", logging.DEBUG)
            elif error is not None:
                one.group.counts["failures"] += 1
                one.reason = f"{type(error).__name__}: {error}"
                replica.doubt(one.reason)
                if number not in answers and one.left:
                    send(number)
                elif number not in answers and not one.running:
                    lost[number] = one.reason
        for number in open_:
            one = asked[number]
            if number in answers or number in lost:
                continue
            if now >= until:
                for replica, _ in one.running.values():
                    replica.doubt("did not answer in time")
                lost[number] = one.reason
            elif one.left and now >= one.hedge_at:
                one.group.counts["hedges"] += 1
                log.info("shard %s: no answer in %.0f ms, another replica is asked too", one.group.name, one.late_ms())
                send(number)
    for number, reason in lost.items():
        groups[number].counts["losses"] += 1
        log.warning("shard %s: lost to this search (%s)", groups[number].name, reason)
    return answers, lost

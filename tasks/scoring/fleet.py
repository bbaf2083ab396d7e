"""Ray workers that come and go: each call is answered once, whatever happens to the workers that take it up.

A call goes to one worker. If that worker is lost, another takes it over; if it takes much longer than such calls do, an
idle one starts on the same call, and whichever is first counts; if it does not answer in time, it is killed. Workers
are started as the cluster has room for them, so that nodes that join are used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from models.errors import Failed, Lost

TEND_SECONDS = 0.5
"""Time between two looks at the cluster."""

START_SECONDS = 1200.0
"""Longest wait for a worker, nodes that have to be started included."""

PING_SECONDS = 10.0
"""In which an idle worker must answer before it gets work."""

SLOW = 3.0
"""A call is slow if it takes so many times as long as usual, and at least ``SLOW_SECONDS``."""

SLOW_SECONDS = 5.0

LOSSES = 3
"""Workers that one call may cost before it is given up."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """What a worker reserves."""

    cpus: float
    gpus: float


@dataclass(eq=False)
class Member:
    """A worker."""

    actor: Any
    ready: Any
    """Reference of its first answer."""
    since: float = field(default_factory=time.monotonic)
    """When it was asked for, or when it last took up a call."""

    @property
    def age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.since


class Fleet:
    """The workers of one cluster. Every method may be called from any thread."""

    def __init__(
        self, hire: Callable[[], Any], need: Need, most: int | None, patience: float, say: Callable[[str], None]
    ):
        """Start to look for room.

        Args:
            hire: starts a worker: an actor with the methods ``ping()`` and ``work(*arguments)``.
            need: what each reserves.
            most: workers at most, asked for at once; as many as fit if left out, and at least one.
            patience: seconds after which a call is taken from a worker.
            say: gets a line whenever workers come or go.
        """
        self._hire = hire
        self._need = need
        self._most = most
        self._patience = patience
        self._say = say
        self._changed = threading.Condition()
        """Of everything below. Always notified as a whole: who waits for a worker is one of several that wait here."""
        self._starting: list[Member] = []
        self._idle: list[Member] = []
        self._busy: dict[Any, Member] = {}
        """By the reference of what it works on."""
        self._beaten: dict[Any, Member] = {}
        """Those that still work on what another has answered."""
        self._usual: dict[Any, float] = {}
        """Seconds for a unit of work, by its sort."""
        self._closed = False
        self._said = 0
        self._tend()
        self._thread = threading.Thread(target=self._keep_tending, name="ray-fleet", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """Workers that can take up a call, or do."""
        with self._changed:
            return len(self._idle) + len(self._busy) + len(self._beaten)

    @property
    def room(self) -> int:
        """Workers that the cluster has room for, or that are to be asked for in any case."""
        return max(1, room(self._need))

    def wait(self, count: int) -> None:
        """Until so many workers are there.

        Raises:
            Failed: they aren't in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.size >= count, START_SECONDS):
                raise Failed(f"ray: {self.size} of {count} workers after {START_SECONDS:.0f} s; look at `ray status`")

    def call(self, sort: Any, units: float, *arguments: Any) -> Any:
        """What a worker's ``work(*arguments)`` gives.

        Args:
            sort: calls of one sort take as long for each unit.
            units: how much work it is.
            arguments: of ``work``.

        Raises:
            Lost: it cost ``LOSSES`` workers.
            Failed: no worker was there in time.
            Exception: what ``work`` raised.
        """
        running: dict[Any, Member] = {}
        losses = 0
        try:
            while True:
                if not running:
                    self._put(self._take(), running, arguments)
                done, _ = ray.wait(list(running), num_returns=1, timeout=self._until(sort, units, running))
                for reference in done:
                    member = running.pop(reference)
                    try:
                        found = ray.get(reference)
                    except RayTaskError as error:
                        self._give_back(reference, member)
                        raise error.cause if isinstance(error.cause, Exception) else error from None
                    except RayError as error:
                        self._lose(reference, member, f"was lost ({type(error).__name__})")
                        losses += 1
                        continue
                    taken = (time.monotonic() - member.since) / units
                    self._give_back(reference, member)
                    with self._changed:
                        self._usual[sort] = max(taken, 0.8 * self._usual.get(sort, 0.0))
                    return found
                for reference in [one for one, member in running.items() if member.age > self._patience]:
                    self._lose(reference, running.pop(reference), f"did not answer for {self._patience:.0f} s")
                    losses += 1
                if losses >= LOSSES and not running:
                    raise Lost(f"{losses} workers, one after the other, were lost over it")
                if len(running) == 1 and max(one.age for one in running.values()) > self._slow(sort, units):
                    second = self._take(wait=False)
                    if second is not None:
                        self._put(second, running, arguments)
        finally:
            with self._changed:  # those that were slower
                for reference, member in running.items():
                    del self._busy[reference]
                    self._beaten[reference] = member

    def close(self) -> None:
        """Let all workers go."""
        with self._changed:
            self._closed = True
            members = [*self._starting, *self._idle, *self._busy.values(), *self._beaten.values()]
            self._changed.notify_all()
        self._thread.join()
        for member in members:
            _kill(member)

    def _until(self, sort: Any, units: float, running: dict[Any, Member]) -> float:
        """Seconds until something has to be done about a call."""
        oldest = max(one.age for one in running.values())
        return max(0.01, min(self._patience - oldest, max(TEND_SECONDS, self._slow(sort, units) - oldest)))

    def _slow(self, sort: Any, units: float) -> float:
        """Seconds after which a call is slow: never, as long as none of its sort was answered."""
        return max(SLOW_SECONDS, SLOW * self._usual.get(sort, math.inf) * units)

    def _take(self, *, wait: bool = True) -> Any:
        """An idle worker that answers; none if there is none now and nobody wants to wait."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._changed:
                if not self._idle and not wait:
                    return None
                while not self._idle:
                    left = deadline - time.monotonic()
                    if self._closed or left <= 0:
                        raise Failed(f"ray: no worker for {START_SECONDS:.0f} s; look at `ray status`")
                    self._changed.wait(left)
                member = self._idle.pop()
                reference = member.actor.ping.remote()
                self._busy[reference] = member
            try:
                ray.get(reference, timeout=PING_SECONDS)
            except (RayError, GetTimeoutError) as error:
                self._lose(reference, member, f"is gone ({type(error).__name__})")
                continue
            with self._changed:
                del self._busy[reference]
            return member

    def _put(self, member: Member, running: dict[Any, Member], arguments: tuple[Any, ...]) -> None:
        with self._changed:
            reference = member.actor.work.remote(*arguments)
            member.since = time.monotonic()
            running[reference] = self._busy[reference] = member

    def _give_back(self, reference: Any, member: Member) -> None:
        with self._changed:
            del self._busy[reference]
            self._idle.append(member)
            self._changed.notify_all()

    def _lose(self, reference: Any, member: Member, why: str) -> None:
        with self._changed:
            del self._busy[reference]
        _kill(member)
        self._say(f"ray: a worker {why}")

    def _keep_tending(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, TEND_SECONDS):
                    return
            try:
                self._tend()
            except RayError as error:  # the cluster may be back at the next look; calls notice if it is not
                _log.warning("ray: %s", error)

    def _tend(self) -> None:
        """Take in workers that are ready, drop those that never will be, and ask for more where there is room."""
        with self._changed:
            for member in list(self._starting):
                if _is_done(member.ready):
                    self._starting.remove(member)
                    with contextlib.suppress(RayError):
                        ray.get(member.ready)
                        self._idle.append(member)
                        self._changed.notify_all()
            for reference, member in list(self._beaten.items()):
                if _is_done(reference):
                    del self._beaten[reference]
                    self._idle.append(member)  # whether it lives, a ping will tell
                    self._changed.notify_all()
                elif member.age > self._patience:
                    del self._beaten[reference]
                    _kill(member)
            there = len(self._idle) + len(self._busy) + len(self._beaten)
            if there != self._said:
                self._said = there
                self._say(f"ray: {there} worker{'s' if there != 1 else ''}")
            wanted = self._most or self.room
            for _ in range(wanted - there - len(self._starting)):
                actor = self._hire()
                self._starting.append(Member(actor, actor.ping.remote()))


def room(need: Need) -> int:
    """How many workers the nodes of the cluster could hold."""
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [has.get(name, 0) // size for name, size in (("CPU", need.cpus), ("GPU", need.gpus)) if size]
            count += int(min(fits, default=0))
    return count


def _is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _kill(member: Member) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(member.actor)

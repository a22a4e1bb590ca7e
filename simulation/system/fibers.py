"""Sequential code under virtual time: it waits, and the scheduler does other things meanwhile.

What blocks a thread in production (a sleep, a request, an orchestrator's turn) runs here as a
fiber, which yields to the scheduler whenever it waits. One fiber runs at a time, and when each goes
on is an event like any other, so a run is still a function of its seed.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import greenlet

from simulation.scheduler import MS, Scheduler

T = TypeVar("T")
LOOK_NS = 5 * MS
"""How often a fiber that waits for another looks whether it has ended."""


class Killed(greenlet.GreenletExit):
    """The process that a fiber belongs to was killed."""


class Fiber:
    def __init__(self, fibers: Fibers, work: Callable[[], None]) -> None:
        self._fibers, self._work = fibers, work
        self.killed = False
        self.actors: list[object] = []
        """For whom it runs: its process, then the server that it has asked, and so on."""
        self.greenlet = greenlet.greenlet(self._run)

    def _run(self) -> None:
        try:
            self._work()
        except Killed:
            self.killed = True
        finally:
            self.end()

    @property
    def ended(self) -> bool:
        return self not in self._fibers.alive

    def end(self) -> None:
        """Note that it has ended."""
        self._fibers.alive.pop(self, None)

    def is_alive(self) -> bool:
        return not self.ended

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or so many seconds of virtual time."""
        end = None if timeout is None else self._fibers.scheduler.now + int(timeout * 1e9)
        while not self.ended and (end is None or self._fibers.scheduler.now < end):
            self._fibers.sleep(LOOK_NS)

    def kill(self) -> None:
        """End it where it waits; one that runs now ends the next time it waits."""
        if self.ended or self.killed:
            return
        self.killed = True
        if self.greenlet is not greenlet.getcurrent():
            self._fibers.throw(self)


class Lock:
    """What `threading.Lock` is to threads: a fiber that finds it taken waits."""

    def __init__(self, fibers: Fibers) -> None:
        self._fibers = fibers
        self._taken = False

    def __enter__(self) -> None:
        while self._taken:
            self._fibers.sleep(LOOK_NS)
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class Fibers:
    """All fibers of a run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._hub: greenlet.greenlet | None = None
        self._current: Fiber | None = None
        self.alive: dict[Fiber, None] = {}
        """In the order in which they were begun."""

    def close(self) -> None:
        """End all fibers: what a waiting one holds is out of the garbage collector's sight."""
        for fiber in list(self.alive):
            fiber.kill()

    def spawn(self, work: Callable[[], None]) -> Fiber:
        fiber = Fiber(self, work)
        self.alive[fiber] = None
        self.scheduler.at(self.scheduler.now, self._resume, fiber)
        return fiber

    def sleep(self, ns: int) -> None:
        """Let virtual time pass. Only in a fiber."""
        fiber = self._current
        assert fiber is not None and self._hub is not None, "only a fiber can wait"
        if fiber.killed:
            raise Killed
        running = events._get_running_loop()
        events._set_running_loop(None)
        self.scheduler.at(self.scheduler.now + max(ns, 1), self._resume, fiber)
        self._hub.switch()
        events._set_running_loop(running)

    @property
    def actor(self) -> object | None:
        """Who runs now; None: nobody that said so."""
        fiber = self._current
        return fiber.actors[-1] if fiber is not None and fiber.actors else None

    @contextmanager
    def acting(self, who: object) -> Iterator[None]:
        """The present fiber does somebody's work until this ends."""
        fiber = self._current
        assert fiber is not None, "only a fiber does somebody's work"
        fiber.actors.append(who)
        try:
            yield
        finally:
            fiber.actors.pop()

    def throw(self, fiber: Fiber) -> None:
        """Have a waiting fiber end now."""
        before, running = self._current, events._get_running_loop()
        hub = self._hub
        self._current = fiber
        events._set_running_loop(None)
        self._hub = greenlet.getcurrent()
        fiber.greenlet.parent = self._hub
        try:
            fiber.greenlet.throw(Killed)
        finally:
            fiber.end()
            self._current, self._hub = before, hub
            events._set_running_loop(running)

    def _resume(self, fiber: Fiber) -> None:
        if fiber.ended or fiber.killed:
            return
        self._hub, self._current = greenlet.getcurrent(), fiber
        fiber.greenlet.parent = self._hub
        try:
            fiber.greenlet.switch()
        finally:
            self._current = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end in the present fiber, its timers under virtual time."""
        loop, running = _Loop(self), events._get_running_loop()
        events._set_running_loop(None)  # a coroutine that asks another machine may run this
        try:
            return loop.run_until_complete(work)
        except Killed:
            loop.set_exception_handler(lambda _loop, _context: None)  # its tasks end here with it
            raise
        finally:
            loop.close()
            events._set_running_loop(running)


class _Selector:
    """What an event loop waits with when nothing is ready: the fiber sleeps."""

    def __init__(self, fibers: Fibers) -> None:
        self._fibers = fibers

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise RuntimeError("a coroutine waits for what never comes")
        if timeout > 0:
            self._fibers.sleep(int(timeout * 1e9) + 1000)
        return []


class _Loop(asyncio.BaseEventLoop):
    """An event loop without sockets, whose time is the scheduler's."""

    _numbers = itertools.count()

    def __init__(self, fibers: Fibers) -> None:
        super().__init__()
        self._fibers, self._began = fibers, fibers.scheduler.now
        self._selector = _Selector(fibers)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return (self._fibers.scheduler.now - self._began) / 1e9

    def _process_events(self, event_list: list[object]) -> None:
        assert not event_list, "there are no sockets here"

    def _write_to_self(self) -> None:
        """Nobody else's thread ever wakes this loop."""

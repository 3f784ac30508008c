"""Calls to a server that may fail: paced, retried with growing waits, cut at a total time; replies or Missing come out.

Knows nothing of HTTP: `sort` says what an exception means. One `Caller` is shared by all threads of a backend, so its
pace and the waits that the server asks for hold for all of them.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from align.errors import UserError
from evals.items import Missing

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """What an exception of a call means.

    `retry`: asking again may help. `fatal`: no other call can succeed either (a refused key), so the rest of the batch
    is not sent. `wait`: seconds that the server asks for, if it does.
    """

    missing: Missing
    retry: bool = False
    fatal: bool = False
    wait: float | None = None


@dataclass(frozen=True)
class Patience:
    """How hard to try: `max_retries` after the first try, waits of `first_wait * 2**k` seconds up to `longest_wait`.

    `attempt_seconds` is the longest silence of one try, `total_seconds` the limit of a request over all its tries and
    waits, counted from its first sending. `per_minute` limits the tries of all threads together, evenly spaced.
    """

    max_retries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 30.0
    attempt_seconds: float = 60.0
    total_seconds: float = 180.0
    per_minute: float | None = None
    max_concurrency: int = 8

    def __post_init__(self) -> None:
        for name in ("first_wait", "longest_wait", "attempt_seconds", "total_seconds", "per_minute"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name}={value} of an API: give a number above 0")
        if self.max_retries < 0 or self.max_concurrency < 1:
            raise UserError("an API needs max_retries of 0 or more and max_concurrency of 1 or more; fix the two")


class Pace:
    """When the next call may start: evenly spaced by a rate, and not before the server's own wait is over."""

    def __init__(self, per_minute: float | None, *, clock: Callable[[], float]) -> None:
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock = clock
        self._next = self._held = -math.inf
        self._lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        """No call starts within the next `seconds`."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)

    def take(self, *, hold_until: float, slot_until: float = math.inf) -> float | None:
        """Reserve the next slot: seconds to wait for it. None, and nothing is reserved, where it would come too late.

        `hold_until` and `slot_until` are the latest times for the end of the server's wait, and for the slot itself.
        """
        with self._lock:
            now = self._clock()
            slot = max(now, self._next, self._held)
            if self._held > hold_until or slot > slot_until:
                return None
            self._next = slot + self._gap
            return slot - now


class Stop:
    """One batch's way to end early: the first fatal failure wakes all sleepers and is everyone's result."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.missing: Missing | None = None

    def set(self, missing: Missing) -> None:
        if self.missing is None:
            self.missing = missing
        self.event.set()


def within(call: Callable[[], T], *, seconds: float) -> T:
    """The call's value, or TimeoutError after `seconds`, whatever it hangs in (name resolution, one byte a second).

    It runs in a daemon thread, which a timeout leaves behind: it ends with the call, and never keeps the process alive.
    """
    box: SimpleQueue[tuple[bool, T | BaseException]] = SimpleQueue()

    def work() -> None:
        try:
            box.put((True, call()))
        except BaseException as error:  # carried over to the waiting thread, which raises it
            box.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        worked, value = box.get(timeout=max(seconds, 0.0))
    except Empty:
        raise TimeoutError(f"no reply within {seconds:.0f} s") from None
    if worked:
        return value  # type: ignore[return-value]
    raise value  # type: ignore[misc]


class Caller(Generic[T]):
    """Runs calls under a `Patience`. A call is given the seconds it may take; `sort(error)` is None for a bug."""

    def __init__(
        self,
        patience: Patience,
        *,
        sort: Callable[[Exception], Failure | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float, threading.Event], object] = lambda seconds, event: event.wait(seconds),
    ) -> None:
        self.patience = patience
        self.pace = Pace(patience.per_minute, clock=clock)
        self._sort, self._clock, self._sleep = sort, clock, sleep
        self._jitter = random.Random(0)

    def run(self, calls: Sequence[Callable[[float], T]]) -> list[T | Missing]:
        """Values in the order of the calls, at most `max_concurrency` at a time."""
        if not calls:
            return []
        stop = Stop()
        pool = ThreadPoolExecutor(min(self.patience.max_concurrency, len(calls)))
        try:
            return list(pool.map(lambda call: self._one(call, stop), calls))
        except BaseException:  # Ctrl-C or a bug: sleepers wake, nothing more is sent
            stop.set(Missing("interrupted"))
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, call: Callable[[float], T], stop: Stop) -> T | Missing:
        wait = self.pace.take(hold_until=self._clock() + self.patience.total_seconds)
        if wait is None:
            return Missing("http_429", "the server asks for a longer wait than the time limit of a request")
        self._pause(wait, stop)
        deadline = self._clock() + self.patience.total_seconds
        tries = 0
        while stop.missing is None:
            tries += 1
            left = deadline - self._clock()
            try:
                return within(lambda seconds=left: call(seconds), seconds=left)  # type: ignore[misc]
            except Exception as error:
                failure = self._meaning(error, left)
                if failure is None:
                    raise
            if failure.fatal:
                stop.set(failure.missing)
                return failure.missing
            if failure.wait is not None:
                self.pace.hold(failure.wait)
            if not failure.retry or tries > self.patience.max_retries:
                return failure.missing
            if not self._wait_for_retry(tries, failure, deadline, stop):
                return failure.missing
        return stop.missing

    def _meaning(self, error: Exception, seconds: float) -> Failure | None:
        if isinstance(error, TimeoutError):
            return Failure(Missing("timeout", f"no reply within the time limit of {seconds:.0f} s"))
        return self._sort(error)

    def _wait_for_retry(self, tries: int, failure: Failure, deadline: float, stop: Stop) -> bool:
        """Wait until the next try; False, at once, where that would be after the deadline."""
        backoff = min(self.patience.longest_wait, self.patience.first_wait * 2 ** (tries - 1))
        wait = failure.wait if failure.wait is not None else backoff * self._jitter.uniform(0.75, 1.0)
        if self._clock() + wait > deadline:
            return False
        self._pause(wait, stop)
        slot = self.pace.take(hold_until=deadline, slot_until=deadline)
        if slot is None:
            return False
        self._pause(slot, stop)
        return True

    def _pause(self, seconds: float, stop: Stop) -> None:
        if seconds > 0 and stop.missing is None:
            self._sleep(seconds, stop.event)

"""Fair shares of the service: how much time each tenant's requests take of it, and which of them have to wait.

One interpreter serves everybody, so while one tenant's request is worked on, in the event loop or in a thread, others
wait. That time is measured for each request: of the processor, or half of the time for which a thread waits for a disk.
Whoever is slow to send or to read takes none. Each tenant has an account, from which it is taken, and which fills as
time goes by; whoever has emptied it rests, for at least as long as its work took, until it is full again. A tenant that
is alone never waits, and all keys of a tenant have one account.

What a model computes for predictions is not counted: its queue is fair by itself (`answers.batching`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")
# Stands for the tenant where no key is asked for. It waits for tenants, and no tenant for it.
OPEN_TO_ALL: Final = ""
# How long somebody counts as there after a request, and as flooding after it had to wait, s.
RECENT: Final = 1.0
# The most that is saved up, s: so many short requests may come at once. A flood thus comes in bursts, and most requests
# of others fall into the time between; evenly spread it would slow each of them.
MOST_CREDIT: Final = 0.03
_ENOUGH: Final = 0.027
# The most that is owed, s: from the time alone, and beside others; one request may take long before it can be stopped.
_MOST_DEBT_ALONE: Final = 0.1
_MOST_DEBT: Final = 5.0
# A rest lasts as long as the work before it, s at most; work that ends so late after the account was empty is left out,
# because a stream of events ends much later.
_LONGEST_REST: Final = 0.25
_LATE: Final = 0.1
# What the event loop, the sockets and changes of threads take for a request where nobody counts, s: 463 small requests
# took 0.66 s where it is counted, and the process 0.86 s.
_OVERHEAD: Final = 0.0004
# Of a second that a thread waits for a disk, or for the interpreter, as part of one that it computes.
_WEIGHT_OF_WAITING: Final = 0.5
# What a request is thought to take before one was measured, s, and at most; the weight of the last in the running mean.
_FIRST_COST: Final = 0.005
_MOST_COST: Final = 0.1
_SMOOTHING: Final = 0.2
# The longest that one piece of a body waits, s: what is slow to come has a time of its own (`middleware.BodyLimit`).
_LONGEST_PAUSE: Final = 2.0
# The longest sleep, s, before whoever waits looks again: those for whom it waits may have left.
_LOOK: Final = 0.05
_FORGOTTEN_AFTER: Final = 60.0  # s


@dataclass
class _Account:
    at: float  # of the level; times are of the clock, s
    level: float = MOST_CREDIT
    cost: float = _FIRST_COST
    asked_at: float = float("-inf")
    waited_at: float = float("-inf")
    full_at: float = float("-inf")
    emptied_at: float = float("-inf")
    rests_until: float = float("-inf")
    rests: bool = False
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    thread: Lock = field(default_factory=Lock)


class Shares:
    """The accounts of all tenants; safe to use from many threads.

    An account fills by a second in `n` seconds. `n` counts the tenant itself, the others that flood, which had to wait
    within the last second, and once all that do not flood; for a tenant that floods these count twice. So one that
    floods the service leaves two thirds of it to however many that ask for little, and of two each leaves three
    quarters. Beside others its requests take, between two times, no more than the time between over `n`, what was saved
    up, and what those take that have begun.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with full accounts.

        Args:
            clock: Clock, in s.
        """
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._guard = Lock()

    def begin(self, tenant: str) -> float:
        """Take in advance what a request is thought to take; returns it, in s, to be charged back in the end."""
        with self._guard:
            account, _ = self._renew(tenant)
            account.level -= account.cost
            return account.cost

    def charge(self, tenant: str, seconds: float) -> None:
        """Take what was taken of the service; a negative number gives back."""
        with self._guard:
            account, rate = self._renew(tenant)
            account.level -= seconds
            if rate is not None and account.rests and account.at - account.emptied_at < _LATE:
                _rest(account, rate=rate)

    def learn(self, tenant: str, seconds: float) -> None:
        """Note what a request took in all."""
        with self._guard:
            account, _ = self._renew(tenant)
            account.cost += _SMOOTHING * (min(seconds, _MOST_COST) - account.cost)

    def wait(self, tenant: str) -> float:
        """How long a tenant must wait, in s, as things are now: 0 unless it rests, or if nobody else is there."""
        with self._guard:
            account, rate = self._renew(tenant)
            if rate is None:
                account.rests = False
                return 0.0
            if account.level <= 0 and not account.rests:
                account.rests, account.emptied_at = True, account.at
                _rest(account, rate=rate)
            wait = max((_ENOUGH - account.level) / rate, account.rests_until - account.at)
            account.rests = account.rests and wait > 0
            if account.rests:
                account.waited_at = account.at
            return wait if account.rests else 0.0

    @contextmanager
    def one_at_a_time(self, tenant: str) -> Iterator[None]:
        """Within the block this is the one thread that works for the tenant, if others are there; nobody waits long.

        Two threads that compute keep the event loop from the interpreter twice as long as one.
        """
        with self._guard:
            account, rate = self._renew(tenant)
        is_held = rate is not None and account.thread.acquire(timeout=_LOOK)
        try:
            yield
        finally:
            if is_held:
                account.thread.release()

    async def admit(self, tenant: str, *, seconds: float) -> float:
        """Wait behind the tenant's other requests until the next may begin; returns as `begin`.

        Raises:
            TimeoutError: It did not come to that within so many seconds.
        """
        with self._guard:
            line = self._renew(tenant)[0].line
        if not line.locked() and not self.wait(tenant):
            return self.begin(tenant)
        async with asyncio.timeout(seconds), line:
            while wait := self.wait(tenant):
                await asyncio.sleep(min(wait, _LOOK))
            return self.begin(tenant)

    async def pause(self, tenant: str) -> None:
        """Wait until the tenant may go on with what has begun, or as long as that may wait."""
        end = self._clock() + _LONGEST_PAUSE
        while (wait := min(self.wait(tenant), end - self._clock())) > 0:
            await asyncio.sleep(min(wait, _LOOK))

    def _renew(self, tenant: str) -> tuple[_Account, float | None]:
        """Fill a tenant's account up to now; returns also by how much it fills in a second, None for one alone."""
        now = self._clock()
        account = self._accounts.get(tenant)
        if account is None:
            gone = [name for name, other in self._accounts.items() if now - other.asked_at > _FORGOTTEN_AFTER]
            for name in gone:
                del self._accounts[name]
            account = self._accounts[tenant] = _Account(at=now)
        account.asked_at = now
        rate = self._compute_rate(tenant, account, now=now)
        filled = min(MOST_CREDIT, account.level + (1.0 if rate is None else rate) * (now - account.at))
        account.level = max(filled, -_MOST_DEBT_ALONE if rate is None else -_MOST_DEBT)
        account.at = now
        if account.level >= _ENOUGH:
            account.full_at = now
        return account, rate

    def _compute_rate(self, tenant: str, account: _Account, *, now: float) -> float | None:
        floods = others = 0
        for name, other in self._accounts.items():
            if name not in (tenant, OPEN_TO_ALL) and now - other.asked_at < RECENT:
                floods += now - other.waited_at < RECENT
                others += 1
        weight = 2 if now - account.waited_at < RECENT else 1
        return 1.0 / (1 + floods + weight * (others > floods)) if others else None


def _rest(account: _Account, *, rate: float) -> None:
    """Let a tenant rest in proportion to its work since its account was full."""
    account.rests_until = account.at + min(account.at - account.full_at, _LONGEST_REST) * (1 / rate - 1)


class RequestMeter:
    """What one request takes of the processor, charged to its tenant once that is known."""

    def __init__(self) -> None:
        """Start with no time used."""
        self._guard = Lock()
        self._spent = 0.0
        self._charged = 0.0
        self._deposit = 0.0
        self._starts: dict[int, tuple[float, float]] = {}  # of the threads that work for it
        self._shares: Shares | None = None
        self._tenant = OPEN_TO_ALL
        self._is_over = False

    def belongs_to(self, tenant: str, *, shares: Shares) -> None:
        """Charge what is counted to a tenant."""
        self._tenant, self._shares = tenant, shares

    def begin(self, deposit: float) -> None:
        """Note what was taken in advance."""
        self._deposit = deposit

    def count(self, seconds: float) -> None:
        """Count time of the processor."""
        with self._guard:
            self._spent += seconds
        if self._is_over:
            self.charge()

    def charge(self) -> None:
        """Charge what was counted since the last time; the first time in place of what was taken in advance."""
        if self._shares is not None:
            with self._guard:
                more, self._charged = self._spent - self._charged - self._deposit, self._spent
                self._deposit = 0.0
            self._shares.charge(self._tenant, more)

    def end(self) -> None:
        """The request was answered; what is counted from here on is charged at once."""
        self.count(_OVERHEAD)
        self.charge()
        self._is_over = True
        if self._shares is not None:
            self._shares.learn(self._tenant, self._spent)

    def wait(self) -> float:
        """Charge what was counted; returns how long the tenant must wait now, in s."""
        self.charge()
        return 0.0 if self._shares is None else self._shares.wait(self._tenant)

    async def pause(self) -> None:
        """Charge what was counted, and wait until the tenant may go on."""
        self.charge()
        if self._shares is not None:
            await self._shares.pause(self._tenant)

    @contextmanager
    def counting(self, *, alone: bool) -> Iterator[None]:
        """Within the block, count what this thread takes; `alone`: after others that work for the tenant."""
        thread = get_ident()
        with nullcontext() if self._shares is None or not alone else self._shares.one_at_a_time(self._tenant):
            self._starts[thread] = _read_thread_times()
            try:
                yield
            finally:
                self.count(_measure_taken(self._starts.pop(thread)))

    def give_way(self) -> None:
        """Charge what this thread has taken so far, and sleep for a moment if the tenant must wait."""
        thread = get_ident()
        if thread in self._starts:
            processor = time.thread_time()
            self.count(_measure_taken(self._starts[thread]))
            time.sleep(min(self.wait(), _LOOK))
            self._starts[thread] = processor, time.monotonic()


def _read_thread_times() -> tuple[float, float]:
    """Time of the processor that this thread has taken, and time of the clock, s."""
    return time.thread_time(), time.monotonic()


def _measure_taken(start: tuple[float, float]) -> float:
    """What this thread has taken since; who waits for a disk keeps others from it, and from the database."""
    processor, clock = _read_thread_times()
    return max(processor - start[0], (clock - start[1]) * _WEIGHT_OF_WAITING)


_METER: ContextVar[RequestMeter | None] = ContextVar("rapt_meter", default=None)


def find_meter(scope: Scope) -> RequestMeter:
    """The meter of a request."""
    found: RequestMeter = scope.setdefault("state", {}).setdefault("meter", RequestMeter())
    return found


def pace(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The two ways of a body, each piece of which waits while its tenant has taken more than its share."""
    meter, task = find_meter(scope), asyncio.current_task()

    async def receive_in_turn() -> Message:
        message = await receive()
        if message.get("more_body", False):
            await meter.pause()
        return message

    async def send_in_turn(message: Message) -> None:
        if asyncio.current_task() is task:
            await send(message)
        else:  # a task of the framework's own, whose steps nobody counts
            await _Counted(_run(send, message), meter)
        if message.get("more_body", False):
            await meter.pause()

    return receive_in_turn, send_in_turn


async def run_in_thread(
    work: Callable[[Unpack[Arguments]], Answer], *args: *Arguments, limiter: CapacityLimiter | None = None
) -> Answer:
    """Return what `work` returns in a thread, whose time is counted for the request that it works for.

    Where there is a limiter, others wait for the place of this one: then it waits for no other thread of its tenant.
    """
    return await anyio.to_thread.run_sync(
        functools.partial(call_counted, work, *args, alone=limiter is None), limiter=limiter
    )


def call_counted(work: Callable[[Unpack[Arguments]], Answer], *args: *Arguments, alone: bool = True) -> Answer:
    """Return what `work` returns, and count what this thread takes for the request that it works for, if any."""
    meter = _METER.get()
    if meter is None:
        return work(*args)
    with meter.counting(alone=alone):
        return work(*args)


def give_way() -> None:
    """Let others go on, if the request that this thread works for has taken more than its tenant's share.

    To be called by what works in a thread for long, every millisecond or so.
    """
    meter = _METER.get()
    if meter is not None:
        meter.give_way()


class Metered:
    """Outermost: measures what a request takes in the event loop, and charges it in the end."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application in fair shares."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request in its tenant's share."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        meter = find_meter(scope)
        _METER.set(meter)
        try:
            await _Counted(_run(self._app, scope, receive, send), meter)
        finally:
            meter.end()


async def _run(work: Callable[[Unpack[Arguments]], Awaitable[None]], *args: *Arguments) -> None:
    await work(*args)


class _Counted:
    """Awaits a coroutine and counts the time of the processor that each of its steps takes."""

    def __init__(self, work: Coroutine[Any, Any, None], meter: RequestMeter) -> None:
        self._work = work
        self._meter = meter

    def __await__(self) -> Generator[Any, Any, None]:
        sent: Any = None
        error: BaseException | None = None
        while True:
            start = time.thread_time()
            try:
                awaited = self._work.send(sent) if error is None else self._work.throw(error)
            except StopIteration:
                return
            finally:
                self._meter.count(time.thread_time() - start)
            sent = error = None
            try:
                sent = yield awaited
            except GeneratorExit:
                self._work.close()
                raise
            except BaseException as thrown:  # the work has to see it, and may go on after it
                error = thrown

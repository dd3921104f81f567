"""Dynamic batching: rows of many callers share forward passes, and no caller waits for one that is not there.

One thread computes. While it does, rows gather; when it is free it takes what is there, in fair order between tenants,
as much as its budget allows. So an idle server answers at once, and a busy one in large batches. What comes meanwhile
waits for all that was taken, so that is no more than is computed in some milliseconds; and of what was taken, callers
of few tokens go first.

After a batch its callers often come back together, a moment apart. The first of them would be served alone and the rest
wait for it. So within a short time after a batch, and only then, the thread waits for as many callers as it had.

Nothing here knows what a row is. A row that fails, fails its own caller and nobody else.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Final, Generic, TypeVar

from rapt.errors import BusyError, RaptError, UnavailableError
from rapt.service.backbone.placement import is_out_of_memory

# A queue that is fair between tenants: deficit round robin (Shreedhar and Varghese 1995).
#
# Each tenant has a line of its own, and lines are served in turn. A line that is visited may spend a quantum, and what
# it does not spend it keeps while it waits, so that lines of long and of short items get the same share of the work.
#
# While two tenants both wait, the costs served to them differ by at most one quantum and one item of each.


T = TypeVar("T")


@dataclass
class _Line(Generic[T]):
    items: deque[tuple[T, int]] = field(default_factory=deque)
    cost: int = 0
    deficit: int = 0


class FairQueue(Generic[T]):
    """Items by tenant, each with a cost; not safe between threads, whoever uses it holds a lock."""

    def __init__(self, *, quantum: int) -> None:
        """Start with no request.

        Args:
            quantum: Cost that a line may spend at a visit, in units of cost; about the cost of a long item.
        """
        self._quantum = quantum
        self._lines: OrderedDict[str, _Line[T]] = OrderedDict()  # the first one is visited next
        self._cost = 0

    def __len__(self) -> int:
        """How many items wait."""
        return sum(len(line.items) for line in self._lines.values())

    @property
    def cost(self) -> int:
        """The total cost of the items that wait."""
        return self._cost

    def cost_of(self, tenant: str) -> int:
        """The total cost of the items that wait in one tenant's line."""
        return self._lines[tenant].cost if tenant in self._lines else 0

    def push(self, item: T, *, tenant: str, cost: int) -> None:
        """Put an item at the end of its tenant's line.

        Args:
            item: Item to be taken later.
            tenant: Tenant in whose line the item waits; a new line is visited last.
            cost: Cost of the item, at least 1.
        """
        line = self._lines.setdefault(tenant, _Line())
        line.items.append((item, cost))
        line.cost += cost
        self._cost += cost

    def take(self, *, budget: int) -> list[T]:
        """The next items in fair order, at least one if any waits, of a total cost within the budget otherwise."""
        taken: list[T] = []
        spent = 0
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            item, cost = line.items[0]
            if taken and spent + cost > budget:
                return taken  # the same line is visited first next time, and has its deficit still
            if cost > line.deficit:
                line.deficit += self._quantum
                self._lines.move_to_end(tenant)
                continue
            line.items.popleft()
            line.deficit -= cost
            line.cost -= cost
            self._cost -= cost
            spent += cost
            taken.append(item)
            if not line.items:
                del self._lines[tenant]  # its deficit goes with it: who does not wait saves nothing up
        return taken

    def tenants(self) -> list[str]:
        """Who waits, the one that is visited next first."""
        return list(self._lines)

    def take_of(self, tenant: str) -> tuple[T, int]:
        """The next item of one line and its cost, for who shares out something else than costs; the line goes last."""
        line = self._lines[tenant]
        item, cost = line.items.popleft()
        line.cost -= cost
        self._cost -= cost
        self._lines.move_to_end(tenant)
        if not line.items:
            del self._lines[tenant]
        return item, cost

    def remove(self, unwanted: Callable[[T], bool], *, tenant: str) -> None:
        """Take items out of a line without serving them."""
        if tenant not in self._lines:
            return
        line = self._lines[tenant]
        kept = deque((item, cost) for item, cost in line.items if not unwanted(item))
        cost = sum(cost for _, cost in kept)
        self._cost += cost - line.cost
        line.items, line.cost = kept, cost
        if not kept:
            del self._lines[tenant]

    def clear(self) -> list[T]:
        """Take everything out, in no particular order."""
        items = [item for line in self._lines.values() for item, _ in line.items]
        self._lines.clear()
        self._cost = 0
        return items


Row = TypeVar("Row")
Answer = TypeVar("Answer")

Plan = Callable[[Sequence[Row]], list[list[int]]]

# Of one tenant's waiting rows, as a part of all that may wait: the others always find room.
TENANT_SHARE: Final = 0.5
# Weight of the last batch in the running estimate of the speed.
_SMOOTHING: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How large and how late.

    Attributes:
        round_cost: Most that is taken at once; what comes later waits for it.
        round_seconds: Time that this may take to compute, s, by the speed of late; `least_cost` may always be taken.
        least_cost: Below it a pass costs nearly the same.
        waiting_cost: Most that may wait; beyond it callers are told to come back.
        quantum: A tenant's turn; a caller whose rows take no more goes before the others of its round.
        longest_wait: Longest wait for callers of the batch before, s.
        wait_share: The same as a part of the time that the batch before took; the smaller of the two holds.
    """

    round_cost: int = 4096
    round_seconds: float = 0.005
    least_cost: int = 384
    waiting_cost: int = 262_144
    quantum: int = 128
    longest_wait: float = 0.005
    wait_share: float = 0.25


class Ticket(Generic[Answer]):
    """One caller's rows and, later, their answers."""

    def __init__(self, *, rows: int, tenant: str) -> None:
        """Make the ticket of `rows` rows that wait in a tenant's line."""
        self.tenant = tenant
        self.future: Future[list[Answer]] = Future()
        self._answers: dict[int, Answer] = {}
        self._rows = rows
        if not rows:
            self.future.set_result([])

    def answer(self, position: int, answer: Answer) -> None:
        """Fill one in; the last one wakes the caller."""
        self._answers[position] = answer
        if len(self._answers) == self._rows:
            with suppress(InvalidStateError):  # the caller has left
                self.future.set_result([self._answers[index] for index in range(self._rows)])

    def fail(self, error: Exception) -> None:
        """Wake the caller with an error, unless it has left or has its answers."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Work(Generic[Row, Answer]):
    ticket: Ticket[Answer]
    position: int
    row: Row
    cost: int


class Batcher(Generic[Row, Answer]):
    """Rows in, answers out; safe to use from many threads and event loops."""

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Answer]],
        *,
        plan: Plan[Row],
        cost: Callable[[Row], int],
        limits: BatchLimits | None = None,
        name: str = "batcher",
    ) -> None:
        """Start the thread that computes.

        Args:
            run: Answers of one pass, in the order of its rows.
            plan: Cuts rows into passes, as lists of their positions, those to run first in front.
            cost: Function that gives the cost of a row, at least 1: how many positions it takes.
            limits: Sizes and times.
            name: Name of the thread.
        """
        self._run, self._plan, self._cost = run, plan, cost
        self._limits = limits or BatchLimits()
        self._queue: FairQueue[_Work[Row, Answer]] = FairQueue(quantum=self._limits.quantum)
        self._changed = Condition()
        self._closing = False
        self._waiting: set[Ticket[Answer]] = set()
        self._seconds_per_cost = 0.0
        self._last_callers, self._last_end, self._last_seconds = 0, 0.0, 0.0
        self._thread = Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], *, tenant: str) -> Ticket[Answer]:
        """Let rows wait for their turn.

        Raises:
            BusyError: More waits already than may, of all or of this tenant.
            UnavailableError: The service is stopping.
        """
        ticket: Ticket[Answer] = Ticket(rows=len(rows), tenant=tenant)
        works = [_Work(ticket, position, row, self._cost(row)) for position, row in enumerate(rows)]
        if not works:
            return ticket
        with self._changed:
            if self._closing:
                raise UnavailableError("the service must not be stopping; send the request again later")
            require_room(
                self._queue,
                sum(work.cost for work in works),
                tenant=tenant,
                limit=self._limits.waiting_cost,
                seconds_per_cost=self._seconds_per_cost,
            )
            for work in works:
                self._queue.push(work, tenant=tenant, cost=work.cost)
            self._waiting.add(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget a caller: rows that wait are not computed any more, and those being computed are not told."""
        with self._changed:
            ticket.future.cancel()
            self._queue.remove(lambda work: work.ticket is ticket, tenant=ticket.tenant)
            self._waiting.discard(ticket)

    @property
    def waiting_cost(self) -> int:
        """The total cost of the rows that wait; those being computed are not counted."""
        with self._changed:
            return self._queue.cost

    def close(self) -> None:
        """Finish the pass that runs, refuse what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._queue.cost and not self._closing:
                    self._changed.wait()
                self._gather()
                if self._closing:
                    for ticket in self._waiting:
                        ticket.fail(UnavailableError("the service is stopping; send the request again later"))
                    self._queue.clear()
                    return
                works = self._queue.take(budget=self._compute_budget())
            self._serve(works)

    def _compute_budget(self) -> int:
        """Cost that may be taken at once."""
        limits, speed = self._limits, self._seconds_per_cost
        in_time = limits.round_seconds / speed if speed else 0.0
        return int(min(limits.round_cost, max(limits.least_cost, in_time)))

    def _gather(self) -> None:
        """Wait for the callers of the batch before, if they may be on their way back."""
        window = min(self._limits.longest_wait, self._limits.wait_share * self._last_seconds)
        deadline = self._last_end + window
        while (
            not self._closing
            and len(self._waiting) < self._last_callers
            and self._queue.cost < self._limits.round_cost
            and (left := deadline - time.monotonic()) > 0
        ):
            self._changed.wait(left)

    def _serve(self, works: list[_Work[Row, Answer]]) -> None:
        start = time.monotonic()
        taken = Counter[Ticket[Answer]]()
        for work in works:
            taken[work.ticket] += work.cost
        for is_light in (True, False):
            rows = [work for work in works if (taken[work.ticket] <= self._limits.quantum) is is_light]
            for positions in self._plan([work.row for work in rows]) if rows else ():
                wanted = [rows[position] for position in positions if not rows[position].ticket.future.done()]
                if wanted:
                    self._serve_pass(wanted)
        self._last_end = time.monotonic()
        self._last_seconds = self._last_end - start
        tickets = {work.ticket for work in works}
        self._last_callers = len(tickets)
        measured = self._last_seconds / sum(work.cost for work in works)
        with self._changed:
            self._seconds_per_cost = update_mean(self._seconds_per_cost, measured)
            self._waiting -= {ticket for ticket in tickets if ticket.future.done()}

    def _serve_pass(self, works: list[_Work[Row, Answer]]) -> None:
        try:
            answers = self._run([work.row for work in works])
        except Exception as error:  # whatever it is, callers wait for it, and the thread must go on for the others
            parts = _split(works, error)
            if not parts:
                works[0].ticket.fail(told(error))
        else:
            for work, answer in zip(works, answers, strict=True):
                work.ticket.answer(work.position, answer)
            return
        for part in parts:  # outside of `except`: the traceback holds on to the memory of the failed pass
            self._serve_pass(part)


def _split(works: list[_Work[Row, Answer]], error: Exception) -> list[list[_Work[Row, Answer]]]:
    """The passes in place of one that failed, none where there is nothing to be gained.

    One of several callers is the reason, and the others must not pay for it; one caller may have had too many rows for
    the memory.
    """
    tickets = list({id(work.ticket): work.ticket for work in works}.values())
    if len(tickets) > 1:
        return [[work for work in works if work.ticket is ticket] for ticket in tickets]
    half = len(works) // 2
    return [works[:half], works[half:]] if half and is_out_of_memory(error) else []


def require_room(queue: FairQueue[Any], cost: int, *, tenant: str, limit: int, seconds_per_cost: float) -> None:
    """Refuse what would wait too long.

    An empty line takes any request that was let in: refused for its size alone, it could never pass.

    Raises:
        BusyError: More waits already than may, of all or of this tenant.
    """
    waiting, own = queue.cost, queue.cost_of(tenant)
    if (not waiting or waiting + cost <= limit) and (not own or own + cost <= limit * TENANT_SHARE):
        return
    raise BusyError(
        f"the service must have room for the request, got {waiting} tokens that wait already; "
        "send it again after the time in retry-after",
        retry_after=max(waiting * seconds_per_cost, 0.1),
    )


def update_mean(mean: float, measured: float) -> float:
    """An estimate of the speed, moved towards the last measurement; 0 is none yet."""
    return mean + _SMOOTHING * (measured - mean) if mean else measured


def told(error: Exception) -> Exception:
    """An error as its caller sees it: one that nobody foresaw keeps its class and loses its message."""
    if isinstance(error, RaptError):
        return error
    if is_out_of_memory(error):
        return UnavailableError(
            "the service must have memory for a pass over a row, got too little; send it again later, or a shorter text"
        )
    seen = RuntimeError(f"a pass failed with {type(error).__name__}")
    seen.__cause__ = error  # for the log, which has places and no messages
    return seen

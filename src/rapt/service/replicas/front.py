"""The service's side of its replicas: what predictors and writers ask, sent to the cluster, and answers handed out.

All that clients may ask of a service is checked and counted in this process: keys, bodies, tokens a minute, places,
shares. Replicas only compute, so whatever their number these limits are exact. Several services on one cluster share
the replicas and the database: tokens a minute, bytes and jobs stay exact, and places and shares are of each service.

The cluster may go away. What waits for it then fails as unavailable, everything else goes on, and it is joined again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from queue import Empty, Queue, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Final
from weakref import WeakKeyDictionary

from rapt.cluster import hold_attendant
from rapt.errors import BusyError, ClusterError, RaptError, UnavailableError
from rapt.service.adapter.adapter import Adapter, adapter_to_files
from rapt.service.adapter.adapter_cache import bytes_of
from rapt.service.answers.batching import TENANT_SHARE, Ticket
from rapt.service.answers.generation import GenerationRow, check_generation
from rapt.service.answers.prediction import Answer, ClassificationRow
from rapt.service.answers.rows import PrivateRow
from rapt.service.answers.writing import Written
from rapt.service.backbone.backbone import Backbone
from rapt.service.jobs.job_run import Outcome
from rapt.service.jobs.tuning_process import ChildSettings
from rapt.service.replicas.bridge import attend
from rapt.service.replicas.calls import ReplicaPlan, ReplicaRequest, send_row
from rapt.service.storage.job_rows import StoredJob

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0  # before a lost cluster is looked for again, s, and then ever longer
_LONGEST_PAUSE: Final = 30.0
_LEAVES: Final = 1.5  # how long the process between may take to leave before this one goes on, s
_BETWEEN_LOOKS: Final = 0.1  # at whether a job shall stop, s
_LONGEST_STOP: Final = 5.0  # of a job that was told to stop, s
_AWAY: Final = "the cluster that computes predictions must be there, and is away; ask again later"
OnSaid = Callable[[str, Any], None]


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """Settings of the replicas of a service.

    Attributes:
        plan: Description of the replicas.
        address: HOST:PORT of the head node of a cluster; None starts one on this machine.
        keep: Whether the replicas stay when the service stops, for another one of the same plan.
        jobs: Settings of the processes that run jobs; None runs none on the cluster.
        jobs_at_once: Number of jobs that run at once.
        shares_disk: Whether jobs find the data directory of the service where they run.
    """

    plan: ReplicaPlan
    address: str | None
    keep: bool
    jobs: ChildSettings | None
    jobs_at_once: int
    shares_disk: bool


class Replicas:
    """The replicas of a service; safe to use from many threads."""

    def __init__(self, settings: ReplicaSettings) -> None:
        """Prepare to join the cluster; `start` does."""
        self._settings = settings
        self._guard = Lock()
        self._numbers = count(1)
        self._waiting: dict[int, OnSaid] = {}
        self._out: SimpleQueue[tuple[str, Any] | None] = SimpleQueue()
        self._digests: WeakKeyDictionary[Adapter, str] = WeakKeyDictionary()
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._is_there = False
        self._first: Queue[RaptError | None] = Queue()
        self._closing = Event()
        self._thread = Thread(target=self._loop, name="rapt-replicas", daemon=True)

    def start(self) -> None:
        """Join the cluster and deploy the replicas.

        Raises:
            UsageError: Ray is not installed, or the address is none.
            ClusterError: The cluster cannot be joined, or the replicas do not start.
        """
        self._thread.start()
        error = self._first.get()
        if error is not None:
            raise error

    @property
    def is_there(self) -> bool:
        """Whether the cluster answers."""
        return self._is_there

    def restart(self) -> None:
        """Replace the replicas a few at a time; each ends what it has begun."""
        with self._guard:
            if self._is_there:
                self._out.put(("restart", None))

    def close(self) -> None:
        """Leave the cluster; a process of its own goes on with that if it takes long."""
        self._closing.set()
        with self._guard:
            self._out.put(("close", self._settings.keep))
            self._out.put(None)
        self._thread.join(_LEAVES)

    def ask(self, model: str, rows: Sequence[PrivateRow], *, tenant: str, cost: int, on_said: OnSaid) -> int:
        """Send rows to a replica; returns the number of the request.

        Args:
            model: Name of the base model.
            rows: Spelled and checked rows, at least one.
            tenant: Tenant whose turn they use.
            cost: Positions that they take.
            on_said: Called in a thread with the kind of an answer and its value.

        Raises:
            UnavailableError: The cluster is away.
        """
        named = [(row.adapter, None if row.adapter is None else self._name(row.adapter)) for row in rows]
        sent = tuple(send_row(row, adapter=digest) for row, (_, digest) in zip(rows, named, strict=True))
        with self._guard:
            if not self._is_there:
                raise UnavailableError(_AWAY)
            number = next(self._numbers)
            self._waiting[number] = on_said
            for adapter, digest in dict(named).items():
                if adapter is not None and digest is not None:
                    self._keep(adapter, digest)
            self._out.put(("ask", ReplicaRequest(number=number, model=model, tenant=tenant, rows=sent, cost=cost)))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is computed."""
        with self._guard:
            if self._waiting.pop(number, None) is not None and self._is_there:
                self._out.put(("cancel", number))

    def run_job(self, slot: int, job: StoredJob, should_stop: Callable[[], bool]) -> Outcome:
        """Run a claimed job in the cluster until it has ended or the function says that it shall stop.

        Args:
            slot: Place that runs one job at a time.
            job: The claimed job.
            should_stop: Asked now and then.
        """
        said: Queue[Any] = Queue()
        with self._guard:
            if not self._is_there:
                return Outcome(kind="away")
            number = next(self._numbers)
            self._waiting[number] = lambda kind, value: said.put(value if kind == "outcome" else Outcome(kind="away"))
            self._out.put(("job", (number, slot, job)))
        told_at: float | None = None
        while True:
            with suppress(Empty):
                outcome: Outcome = said.get(timeout=_BETWEEN_LOOKS)
                return outcome
            if told_at is None and should_stop():
                told_at = time.monotonic()
                with self._guard:
                    self._out.put(("stop", (slot, job)))
            if told_at is not None and time.monotonic() - told_at > _LONGEST_STOP:
                with self._guard:
                    self._waiting.pop(number, None)
                return Outcome(kind="stopped")

    def _name(self, adapter: Adapter) -> str:
        """The digest of an adapter's files, computed once."""
        digest = self._digests.get(adapter)
        if digest is None:
            digest = self._digests[adapter] = _digest(adapter_to_files(adapter), model=adapter.card.model)
        return digest

    def _keep(self, adapter: Adapter, digest: str) -> None:
        """Send the files of an adapter that the cluster does not have, and let it drop those used least."""
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return
        self._kept[digest] = bytes_of(adapter)
        self._out.put(("keep", (digest, adapter_to_files(adapter))))
        while sum(self._kept.values()) > self._settings.plan.adapter_bytes and len(self._kept) > 1:
            oldest, _ = self._kept.popitem(last=False)
            self._out.put(("drop", oldest))

    def _loop(self) -> None:
        plan, settings = self._settings.plan, self._settings
        cores = max(1, round(plan.most * plan.cores)) + (settings.jobs_at_once if settings.jobs is not None else 0)
        is_first, pause = True, _FIRST_PAUSE
        while not self._closing.is_set():
            error = RaptError()
            try:
                with hold_attendant(attend, address=settings.address, cores=cores) as (connection, _):
                    connection.send((plan, settings.jobs, settings.shares_disk))
                    self._serve(connection)
            except (EOFError, OSError):
                error = ClusterError("the cluster of the replicas must stay, and was lost; start it again")
            except RaptError as found:
                error = found
            if self._lose_all():
                is_first, pause = False, _FIRST_PAUSE
            elif is_first:
                self._first.put(error)
                return
            if not self._closing.is_set():
                log.error("%s", error)
            self._closing.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _serve(self, connection: Connection) -> None:
        """Hand answers out until the pipe ends (`EOFError`); raises what the process between could not do."""
        said = connection.recv()
        if isinstance(said, RaptError):
            raise said
        with self._guard:
            self._out, self._is_there = SimpleQueue(), True
            out = self._out
        log.info("the replicas are there")
        self._first.put(None)
        Thread(target=_send, args=(connection, out), name="rapt-send", daemon=True).start()
        try:
            while True:
                for number, kind, value in connection.recv():
                    self._hand_out(number, kind, value)
        finally:
            out.put(None)

    def _hand_out(self, number: int, kind: str, value: Any) -> None:
        if kind == "restarted":
            log.log(logging.INFO if value is None else logging.ERROR, "replicas were replaced: %s", value or "done")
            return
        if kind == "waits":
            log.warning("a job waits for a core of the cluster: replicas have them, or other work; give it more cores")
            return
        if kind == "not kept":
            with self._guard:
                self._kept.pop(value, None)
            return
        goes_on = kind == "written" and value.finish is None and value.error is None
        with self._guard:
            on_said = self._waiting.get(number) if goes_on else self._waiting.pop(number, None)
        if on_said is not None:  # else the caller has left
            on_said(kind, value)

    def _lose_all(self) -> bool:
        """Say to all who wait that the cluster is away; returns whether it was there."""
        with self._guard:
            was_there, self._is_there = self._is_there, False
            waiting, self._waiting = self._waiting, {}
            self._kept.clear()
        for on_said in waiting.values():
            on_said("error", UnavailableError(_AWAY))
        return was_there


def _send(connection: Connection, out: SimpleQueue[tuple[str, Any] | None]) -> None:
    """Send what comes, all that is there at once, until None."""
    with suppress(OSError):
        is_open = True
        while is_open:
            messages = [out.get()]
            while not out.empty():
                messages.append(out.get())
            is_open = None not in messages
            connection.send([message for message in messages if message is not None])


def _digest(files: dict[str, bytes], *, model: str) -> str:
    found = hashlib.sha256(model.encode())
    for name, content in sorted(files.items()):
        found.update(f" {name} {len(content)} ".encode() + content)
    return found.hexdigest()


class Room:
    """Limit of what was sent and waits, in all and of one tenant, as `batching.require_room` has it."""

    def __init__(self, limit: int) -> None:
        """Start with nothing sent."""
        self.limit = limit
        self._costs: Counter[str] = Counter()
        self._guard = Lock()

    def take(self, tenant: str, cost: int) -> None:
        """Count what is sent. Raises `BusyError` where there is no room."""
        with self._guard:
            waiting, own = self._costs.total(), self._costs[tenant]
            if (waiting and waiting + cost > self.limit) or (own and own + cost > self.limit * TENANT_SHARE):
                raise BusyError(
                    f"the service must have room for the request, got {waiting} tokens that wait already; "
                    "send it again after the time in retry-after",
                    retry_after=1.0,
                )
            self._costs[tenant] += cost

    def give_back(self, tenant: str, cost: int) -> None:
        """Count what was answered."""
        with self._guard:
            self._costs[tenant] -= cost
            if not self._costs[tenant]:
                del self._costs[tenant]


class ReplicaBatches:
    """Batches that replicas compute: what a `Predictor` asks in place of a thread of its own."""

    def __init__(self, replicas: Replicas, model: str, *, room: Room) -> None:
        """Send the rows of one model."""
        self._replicas, self._model, self._room = replicas, model, room
        self._numbers: WeakKeyDictionary[Ticket[Answer], int] = WeakKeyDictionary()

    def submit(self, rows: Sequence[ClassificationRow], *, tenant: str) -> Ticket[Answer]:
        """Send rows. Raises `BusyError` or `UnavailableError`."""
        ticket: Ticket[Answer] = Ticket(rows=len(rows), tenant=tenant)
        if not rows:
            return ticket
        cost = sum(row.positions for row in rows)

        def say(kind: str, value: Any) -> None:
            if kind == "error":
                ticket.fail(value)
                return
            for position, answer in enumerate(value):
                ticket.answer(position, answer)

        self._room.take(tenant, cost)
        ticket.future.add_done_callback(lambda _: self._room.give_back(tenant, cost))
        try:
            number = self._replicas.ask(self._model, rows, tenant=tenant, cost=cost, on_said=say)
        except BaseException:
            ticket.future.cancel()
            raise
        self._numbers[ticket] = number
        return ticket

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget a caller, whose request is not computed any more."""
        ticket.future.cancel()
        if (number := self._numbers.get(ticket)) is not None:
            self._replicas.cancel(number)

    def close(self) -> None:
        """Do nothing: the replicas close for all models at once."""


@dataclass(eq=False)
class SentText:
    """A text that a replica writes."""

    number: int
    end: Callable[[], None]


class ReplicaWriter:
    """Texts that replicas write; a `Writer` to its callers."""

    def __init__(self, replicas: Replicas, model: str, backbone: Backbone, *, room: Room) -> None:
        """Send the texts of one model."""
        self._replicas, self._model, self._backbone, self._room = replicas, model, backbone, room

    def submit(
        self, row: GenerationRow, *, tenant: str, tell: Callable[[Written], bool | None], position: int = 0
    ) -> SentText:
        """Send a text; as `Writer.submit`, with `tell` in a thread that must not be held up."""
        check_generation(self._backbone, row, position=position)
        self._room.take(tenant, row.cost)
        taken = [row.cost]

        def end() -> None:
            with suppress(IndexError):  # another thread was first
                self._room.give_back(tenant, taken.pop())

        def say(kind: str, value: Any) -> None:
            written = Written(error=value) if kind == "error" else value
            enough = True
            with suppress(Exception):  # whoever listened is gone: its loop is closed
                enough = tell(written) is True
            if enough or written.finish is not None or written.error is not None:
                self.cancel(text)

        text = SentText(0, end)
        try:
            # Answers come from another thread, and may come before the number is known: then there is nothing to end.
            text.number = self._replicas.ask(self._model, [row], tenant=tenant, cost=row.cost, on_said=say)
        except BaseException:
            end()
            raise
        return text

    def cancel(self, text: SentText) -> None:
        """Forget a caller: its text ends before the next token."""
        text.end()
        self._replicas.cancel(text.number)

    @property
    def most_of_a_tenant(self) -> int:
        """Cost that the texts of one tenant may have while they wait; one text alone may have more."""
        return int(self._room.limit * TENANT_SHARE)

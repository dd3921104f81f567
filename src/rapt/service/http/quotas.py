"""What each tenant may have of the service: tokens a minute, bytes that arrive, and places for what is done at once.

On SQLite one process serves and buckets of tokens are in its memory; a restart fills them. On PostgreSQL they are rows
that all serving processes share. Places and shares are of each process, because they keep its own threads. Quotas that
are about what is stored (bytes, jobs) are checked in the transaction that stores it, and bytes before that, while they
arrive.

Threads are few and a body may be large. So that one tenant's requests leave room for those of another, each has so many
places of each kind; a request that finds none free waits before its body is read, holding no thread and no memory. And
so that a flood of requests leaves time for those of another, it waits there while its tenant has taken more of the
processor than its share (`shares`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Final, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapt.errors import BusyError, NotFoundError, QuotaError
from rapt.service.http.http_errors import answer_error
from rapt.service.http.middleware import FORM_OVERHEAD, is_upload
from rapt.service.http.settings import Settings
from rapt.service.http.shares import OPEN_TO_ALL, Shares, find_meter, pace, run_in_thread
from rapt.service.storage.store import Store
from rapt.service.storage.tenant_rows import count_room, get_tenant, spend_tokens

_PREDICTIONS: Final = frozenset({"/v1/classify", "/v1/completions", "/v1/chat/completions"})
# What is long in coming or going, and computes little meanwhile.
_VOCABULARIES: Final = "/v1/vocabularies/"
_LONG: Final = ("/content", "/adapter", "/complete")
# A body from which on a prediction takes a place: the threads that parse are few.
_LARGE: Final = 32 * 1024
# A large body that is refused keeps its place for as long as so many bytes a second would have taken: to read one
# takes the processor from everybody, and what is wrong can be sent without end.
_REFUSED_A_SECOND: Final = 2 * 1024 * 1024
_LONGEST_WAIT: Final = 20.0  # s, for a place and a turn; then the client is told to come again
_LONGEST_WAIT_REFUSED: Final = 5.0  # s
_ALWAYS: Final = "/healthz"  # answers while everything else waits


@dataclass
class _Bucket:
    level: float
    at: float


class ArrivingBytes:
    """Bytes on their way in, by tenant: together with what is stored they stay within its quota, on the disk too."""

    def __init__(self, store: Store, *, default: int) -> None:
        """Start with nothing counted.

        Args:
            store: Knows what is stored.
            default: Bytes of a tenant without a quota of its own.
        """
        self._store = store
        self._default = default
        self._arriving: Counter[str] = Counter()
        self._room: dict[str, int] = {}
        self._guard = Lock()

    def count(self, tenant: str, more: int) -> None:
        """Count bytes that are about to be written. Raises `QuotaError`: then they must not be, and are not counted."""
        with self._guard:
            room = self._room.get(tenant)
            if room is not None and self._arriving[tenant] + more <= room:
                self._arriving[tenant] += more
                return
        # What is stored may be less than at the last look.
        room = count_room(self._store, tenant, limit=self._default)
        with self._guard:
            self._room[tenant] = room
            if self._arriving[tenant] + more > room:
                raise QuotaError(
                    f"a tenant must have at most {max(0, room)} more bytes of files and models, those counted that "
                    "arrive at the same time; delete some, or ask the provider",
                    retry_after=None,
                )
            self._arriving[tenant] += more

    def uncount(self, tenant: str, count: int) -> None:
        """Forget bytes that were stored, which the next look at the store finds there, or thrown away."""
        with self._guard:
            self._arriving[tenant] -= count
            self._room.pop(tenant, None)
            if not self._arriving[tenant]:
                del self._arriving[tenant]


class TokenQuotas:
    """The buckets of all tenants; safe to use from many threads."""

    def __init__(self, store: Store, *, default: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with full buckets.

        Args:
            store: Knows the quotas of tenants that have their own.
            default: Tokens a minute of all others.
            clock: Clock, in s.
        """
        self._store = store
        self._default = default
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._given_back: Counter[str] = Counter()
        self._guard = Lock()

    def spend_tokens(self, tenant: str, count: int) -> None:
        """Take tokens for a prediction, before it is made: those that are read, and the most that may be written.

        Raises:
            QuotaError: There are not enough now, or more than a minute's are asked at once; nothing was taken.
        """
        limit = self.limit_of(tenant)
        if count > limit:
            raise QuotaError(
                f"a request must have at most the tenant's tokens of a minute, {limit}, got {count}; send several",
                retry_after=None,
            )
        rate, now = limit / 60.0, self._clock()
        if not self._store.database.is_sqlite:
            missing = self._spend_together(tenant, count, limit=limit)
            if missing is None:
                return
            self._refuse(limit, missing)
        with self._guard:
            bucket = self._buckets.setdefault(tenant, _Bucket(level=float(limit), at=now))
            bucket.level = min(float(limit), bucket.level + rate * (now - bucket.at))
            bucket.at = now
            if bucket.level >= count:
                bucket.level -= count
                return
            missing = count - bucket.level
        self._refuse(limit, missing)

    def _spend_together(self, tenant: str, count: int, *, limit: int) -> float | None:
        """Take tokens from the bucket that all serving processes share; returns how many are missing, or None."""
        with self._guard:
            given_back = self._given_back.pop(tenant, 0)
        missing: float | None = 0.0
        try:
            missing = spend_tokens(self._store, tenant, count, limit=limit, given_back=given_back)
        finally:
            if missing is not None:  # nothing was taken, and nothing put back
                self.give_back(tenant, given_back)
        return missing

    def _refuse(self, limit: int, missing: float) -> NoReturn:
        raise QuotaError(
            f"a tenant must have at most {limit} tokens of predictions a minute; send less, or ask the provider",
            retry_after=missing / (limit / 60.0),
        )

    def give_back(self, tenant: str, count: int) -> None:
        """Put back what was taken for tokens that were not written.

        Called by the event loop, so nothing is asked for: `spend_tokens` takes from no more than a full bucket, and on
        PostgreSQL puts it back with what this process takes next.
        """
        with self._guard:
            if not self._store.database.is_sqlite:
                self._given_back[tenant] += count
                return
            bucket = self._buckets.get(tenant)
            if bucket is not None:
                bucket.level += count

    def limit_of(self, tenant: str) -> int:
        """Tokens a minute that a tenant may have."""
        try:
            own = get_tenant(self._store, tenant).quotas.tokens_per_minute
        except NotFoundError:  # deleted since it came in at the door
            return 0
        return self._default if own is None else own


class Places:
    """Places for so many requests of each tenant, and of all together; taken and given back in the event loop alone.

    The first place of a tenant is its own, whatever the others hold: a few tenants whose clients are slow to send or to
    read could hold all the others.
    """

    def __init__(self, *, each: int, together: int) -> None:
        """Start with all of them free."""
        self._each = each
        self._together = together
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def take(self, tenant: str, *, seconds: float) -> None:
        """Take a place, waiting for one behind those who came before. Raises `TimeoutError`."""
        if self._is_free(tenant) and all(other != tenant for other, _ in self._waiting):
            self._taken[tenant] += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, place))
        try:
            async with asyncio.timeout(seconds):
                await place
        except BaseException:
            if place.done() and not place.cancelled():
                self.give_back(tenant)
            raise
        finally:
            self._waiting = [other for other in self._waiting if other[1] is not place]

    def give_back(self, tenant: str) -> None:
        """Free a place; the first who waits and may have it gets it."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
        for waiting, place in self._waiting:
            if not place.done() and self._is_free(waiting):
                self._taken[waiting] += 1
                place.set_result(None)

    def _is_free(self, tenant: str) -> bool:
        taken = self._taken[tenant]
        return not taken or (taken < self._each and self._taken.total() < self._together)


class TenantPlaces:
    """Lets each tenant do so much at once, and in all; inside of the door, which says whose a request is."""

    def __init__(self, app: ASGIApp, *, settings: Settings, store: Store) -> None:
        """Wrap an application so that a tenant has only so many requests at once."""
        self._app = app
        self._shares = Shares()
        self._store = store
        self._most = settings.tenant_requests
        self._tenant_bytes = settings.tenant_bytes
        self._most_json = settings.max_json_bytes
        self._requests: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        # Together no more than the threads of the framework, 40, so that some are left for the door and predictions.
        self._uploads = Places(each=settings.tenant_uploads, together=8)
        self._large = Places(each=2, together=8)
        self._long = Places(each=4, together=16)
        # Each takes the interpreter, which the event loop needs for every answer: with four of a tenant at once, those
        # of another came six times as late, with two twice.
        self._others = Places(each=2, together=16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, at once or when there is a place, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = scope.get("state", {}).get("caller")
        tenant = OPEN_TO_ALL if caller is None else caller.tenant
        find_meter(scope).belongs_to(tenant, shares=self._shares)
        if scope["path"] == _ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._requests[tenant] >= self._most:
            await self._refuse_in_turn(tenant, scope, receive, send)
            return
        self._requests[tenant] += 1
        try:
            await self._serve_in_place(tenant, scope, *pace(scope, receive, send))
        finally:
            self._requests[tenant] -= 1

    async def _serve_in_place(self, tenant: str, scope: Scope, receive: Receive, send: Send) -> None:
        places, until = self._find_places(scope), asyncio.get_running_loop().time() + _LONGEST_WAIT
        refused, rule = False, "a tenant must have fewer requests of this kind at once"
        if places is not None:
            try:
                await places.take(tenant, seconds=_LONGEST_WAIT)
            except TimeoutError:
                await _refuse(scope, receive, send, rule)
                return

        async def look_and_send(message: Message) -> None:
            nonlocal refused
            refused = refused or message.get("status", 200) >= 400
            await send(message)

        try:
            try:
                left = until - asyncio.get_running_loop().time()
                find_meter(scope).begin(await self._shares.admit(tenant, seconds=left))
            except TimeoutError:
                await _refuse(scope, receive, send, "a tenant must ask for less while others are there too")
                return
            if places is self._uploads:
                await self._refuse_without_room(tenant, scope)
            await self._app(scope, receive, look_and_send)
        finally:
            if places is not None:
                # Who sends what is refused pays no tokens for the work of reading it, and so waits with the next.
                wait = self._count_size(scope) / _REFUSED_A_SECOND if refused and places is self._large else 0.0
                asyncio.get_running_loop().call_later(wait, places.give_back, tenant)

    async def _refuse_in_turn(self, tenant: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request beyond those that a tenant may have at once: at its turn, because that takes time too.

        Of these as many may wait as of those that are served. Others are refused at once, and lose their connections:
        to make a new one is for the client to do.
        """
        has_place = self._refused[tenant] < self._most
        self._refused[tenant] += 1
        try:
            if has_place:
                with suppress(TimeoutError):
                    find_meter(scope).begin(await self._shares.admit(tenant, seconds=_LONGEST_WAIT_REFUSED))
            rule = f"a tenant must have at most {self._most} requests at once"
            await _refuse(scope, receive, send, rule, closes=not has_place)
        finally:
            self._refused[tenant] -= 1

    def _find_places(self, scope: Scope) -> Places | None:
        if is_upload(scope):
            return self._uploads
        path = scope["path"]
        if path in _PREDICTIONS:
            return None if 0 <= _read_announced(scope) <= _LARGE else self._large
        if path.startswith(_VOCABULARIES) or path.endswith(_LONG):
            return self._long
        return self._others

    def _count_size(self, scope: Scope) -> int:
        announced = _read_announced(scope)
        return announced if 0 <= announced <= self._most_json else self._most_json

    async def _refuse_without_room(self, tenant: str, scope: Scope) -> None:
        """Refuse a file that is announced and cannot be kept before it is read; what comes is counted where it is."""
        room = await run_in_thread(lambda: count_room(self._store, tenant, limit=self._tenant_bytes))
        if _read_announced(scope) - FORM_OVERHEAD > room:
            raise QuotaError("a tenant must have room for what it sends; delete something, or ask the provider")


def _read_announced(scope: Scope) -> int:
    """Bytes of a body; -1 where it comes in chunks."""
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return -1
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else -1


async def _refuse(scope: Scope, receive: Receive, send: Send, rule: str, *, closes: bool = False) -> None:
    answer = answer_error(BusyError(f"{rule}; send the next when one has its answer", retry_after=1.0))
    if closes:
        answer.headers["connection"] = "close"
    await answer(scope, receive, send)

"""Tokens a minute, for each tenant: a bucket that fills evenly and from which every prediction takes; arriving bytes.

Kept in memory, because the one serving process does all predictions; a restart fills the buckets. Quotas that are about
what is stored (bytes, jobs) are checked in the transaction that stores it, and bytes before that, while they arrive.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from rapt.errors import NotFoundError, QuotaError
from rapt.service.storage.store import Store
from rapt.service.storage.tenant_rows import get_tenant, room_of


@dataclass
class _Bucket:
    level: float
    at: float


class ArrivingBytes:
    """Bytes on their way in, by tenant: together with what is stored they stay within its quota, on the disk too."""

    def __init__(self, store: Store, *, default: int) -> None:
        """Count none yet.

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
        room = room_of(self._store, tenant, limit=self._default)
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
            clock: In s.
        """
        self._store = store
        self._default = default
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
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
        with self._guard:
            bucket = self._buckets.setdefault(tenant, _Bucket(level=float(limit), at=now))
            bucket.level = min(float(limit), bucket.level + rate * (now - bucket.at))
            bucket.at = now
            if bucket.level >= count:
                bucket.level -= count
                return
            missing = count - bucket.level
        raise QuotaError(
            f"a tenant must have at most {limit} tokens of predictions a minute; send less, or ask the provider",
            retry_after=missing / rate,
        )

    def give_back(self, tenant: str, count: int) -> None:
        """Put back what was taken for tokens that were not written.

        Called by the event loop, so the limit is not asked for: `spend_tokens` takes from no more than a full bucket.
        """
        with self._guard:
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

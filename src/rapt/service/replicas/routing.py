"""Which replica a request goes to: the one that its adapter's key belongs to, whoever asks, while it is not overloaded.

Every bridge finds the same replica without asking anybody, and when replicas come and go only their own keys move
(`rank_replicas`). A replica says how many calls it has when it takes one; where that is more than its share, or its
queue is full, the next one is asked. Ray Serve alone loads this module, by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import RequestRouter

from rapt.service.replicas.calls import rank_replicas


class RendezvousRouter(RequestRouter):  # type: ignore[misc]  # Ray is an extra: without it this is Any
    """Finds the replica of a request by `multiplexed_model_id`."""

    async def choose_replicas(self, candidate_replicas: Sequence[Any], pending_request: Any = None) -> list[list[Any]]:
        """Rank the replicas, each alone in its rank."""
        key = "" if pending_request is None else pending_request.metadata.multiplexed_model_id
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ids = [replica.replica_id for replica in candidate_replicas]
        # None where nothing was heard for a while: whoever is asked then says how many it has.
        calls = [self.replica_queue_len_cache.get(name) or 0 for name in ids]
        places = rank_replicas([name.unique_id for name in ids], calls, key=key)
        return [[candidate_replicas[place]] for place in places]

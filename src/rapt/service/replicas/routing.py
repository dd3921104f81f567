"""Which replica a request goes to: the one that its adapter's key belongs to, whoever asks.

Rendezvous hashing (Thaler and Ravishankar 1998) takes the replica for which the hash of its id and the key is largest.
So every bridge finds the same without asking anybody, and when replicas come and go only their own keys move.
One whose queue is full passes the request on to the next. Ray Serve alone loads this module, by its name.
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
        ids = [replica.replica_id.unique_id for replica in candidate_replicas]
        return [[candidate_replicas[place]] for place in rank_replicas(ids, key=key)]

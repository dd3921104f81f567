"""What a service and its replicas say to each other: rows and settings there, answers back; values, no tenant's key.

A row has privatized ids and the digest of its adapter. The adapter's files go to the cluster once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rapt.errors import RaptError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import ClassificationRow
from rapt.service.answers.rows import PrivateRow
from rapt.service.backbone.backbone import Weights
from rapt.service.backbone.opening import Precision
from rapt.version import __version__

# Requests for one replica are found by this much of an adapter's digest: 256 groups, of which each stays together.
_KEY_LETTERS: Final = 2
# Most calls of a replica while others have fewer: so many times the mean, and so many in any case.
_MOST_OF_MEAN: Final = 1.25
_FEWEST_CALLS: Final = 2


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """Description of the replicas of a service.

    Attributes:
        service: Id of the service: its replicas are found under it.
        models: Base models to load, a known name or a folder each, by the name that they are served under.
        vocabularies: Hash of the vocabulary of each, as the service has it.
        precision: Precision of all models.
        device: Device of all models, as `choose_device` takes it.
        weights: Format in which the weights of linear layers are kept.
        device_map: Devices of layers.
        torch_threads: Threads of one matrix product; None for as many as Ray gives a replica.
        waiting_cost: Most tokens that may wait in one replica for each model.
        adapter_bytes: Memory of one replica for tuned models.
        least: Fewest replicas.
        most: Most replicas.
        requests: Requests at once for each replica that Serve aims at when it adds or takes away replicas.
        up_after: Time for which more must be asked before Serve adds a replica, s.
        down_after: Time for which less must be asked before it takes one away, s.
        cores: Cores of a replica.
        gpus: GPUs of a replica.
        version: Version of rapt that every node must have.
    """

    service: str
    models: Mapping[str, str]
    vocabularies: Mapping[str, str]
    precision: Precision
    device: str
    weights: Weights
    device_map: str
    torch_threads: int | None
    waiting_cost: int
    adapter_bytes: int
    least: int
    most: int
    requests: float
    up_after: float
    down_after: float
    cores: float
    gpus: float
    version: str = __version__

    @property
    def name(self) -> str:
        """The name of the application in Ray Serve: another one for another plan."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"rapt-{digest[:16]}"


class MissingAdapter(RaptError):
    """A replica does not have an adapter: the request is to be sent again, with the files."""


@dataclass(frozen=True, kw_only=True)
class SentRow:
    """A row on its way: spelled and checked, with the digest of its adapter in the adapter's place."""

    token_ids: tuple[int, ...]
    adapter: str | None
    privatized_plain_tokens: tuple[int, ...]
    second_token_ids: tuple[int, ...] | None
    most_tokens: int = 0
    sampling: Sampling | None = None


@dataclass(frozen=True, kw_only=True)
class ReplicaRequest:
    """The rows of one caller.

    Attributes:
        number: Number of the request in the service.
        model: Name of the base model.
        tenant: Tenant whose turn they use.
        rows: Rows to be classified, or one to be written to.
        cost: Positions that they take, about.
    """

    number: int
    model: str
    tenant: str
    rows: tuple[SentRow, ...]
    cost: int

    @property
    def key(self) -> str:
        """Key that finds the replica: first letters of the digest of the first row's adapter, or the model's name."""
        adapter = self.rows[0].adapter
        return self.model if adapter is None else adapter[:_KEY_LETTERS]

    @property
    def is_written_to(self) -> bool:
        """Whether the answer is a text."""
        return self.rows[0].sampling is not None


def send_row(row: PrivateRow, *, adapter: str | None) -> SentRow:
    """The row as it is sent, for the digest of its adapter."""
    text = row if isinstance(row, GenerationRow) else None
    return SentRow(
        token_ids=row.token_ids,
        adapter=adapter,
        privatized_plain_tokens=row.privatized_plain_tokens,
        second_token_ids=row.second_token_ids,
        most_tokens=0 if text is None else text.most_tokens,
        sampling=None if text is None else text.sampling,
    )


def receive_row(sent: SentRow, adapter: Adapter | None) -> Any:
    """The row that was sent, with its adapter: a `GenerationRow` where it is written to, else a `ClassificationRow`."""
    given: dict[str, Any] = {
        "token_ids": sent.token_ids,
        "adapter": adapter,
        "privatized_plain_tokens": sent.privatized_plain_tokens,
        "second_token_ids": sent.second_token_ids,
    }
    if sent.sampling is None:
        return ClassificationRow(**given)
    return GenerationRow(**given, most_tokens=sent.most_tokens, sampling=sent.sampling)


def rank_replicas(ids: Sequence[str], calls: Sequence[int], *, key: str) -> list[int]:
    """The places of replicas in the order in which a key's next call should try them.

    Rendezvous hashing (Thaler and Ravishankar 1998) orders them, and those that have their share of the calls already
    come last (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018): a quarter more than the
    mean, and two at least. So none idles while calls wait for another, and few calls leave the replica of their key.

    Args:
        ids: Id of each replica.
        calls: Number of calls that each has at present.
        key: Key of the request.
    """
    share = max(_FEWEST_CALLS, math.ceil(_MOST_OF_MEAN * (sum(calls) + 1) / max(1, len(ids))))
    weights = [hashlib.blake2b(f"{name} {key}".encode(), digest_size=8).digest() for name in ids]
    return sorted(range(len(ids)), key=lambda place: (calls[place] < share, weights[place]), reverse=True)

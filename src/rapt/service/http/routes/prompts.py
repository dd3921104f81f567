"""Prompts that are let in: privatized ids, checked against their manifest and against what each model was tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rapt.errors import LimitError, UsageError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.prediction import row_of
from rapt.service.http.admission import check_tuned, check_vocabulary
from rapt.service.http.assembly import Service
from rapt.service.http.completion_schemas import PromptPrivacy
from rapt.service.http.routes.classify import MOST_PROBABILITIES, tuned_adapters
from rapt.service.storage.callers import Caller
from rapt.wire.privatized_file import PrivatizedRecord, query_from_json

GENERATION = "generation"
MOST_MODELS: Final = 256  # that one request may name


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """One prompt and what answers it: an adapter, or without one the bare backbone."""

    record: PrivatizedRecord
    backbone: str
    adapter: Adapter | None

    @property
    def is_written_to(self) -> bool:
        """Whether the answer is a text and not a label."""
        return self.adapter is None or self.adapter.card.task == GENERATION

    @property
    def added_positions(self) -> int:
        """What is computed for it beside its texts, of the tenant's tokens."""
        return row_of(self.record, adapter=self.adapter).added_positions


def admit_prompts(
    service: Service,
    prompts: Sequence[list[int]],
    *,
    model: str,
    privacy: PromptPrivacy,
    caller: Caller,
    most_tokens: int,
) -> list[Prompt]:
    """The prompts of a request, each with its model; its tokens are taken from the tenant's.

    Args:
        service: What answers.
        prompts: Privatized ids.
        model: Of all prompts that `privacy` names no model for.
        privacy: Manifest, and what else stands in the records.
        caller: Who asks.
        most_tokens: Most that are written to each prompt whose answer is a text.

    Raises:
        UsageError: The lists are not of one length, or a prompt was privatized otherwise than its model's training
            text.
        NotFoundError: A model is not there, or not the caller's.
        LimitError: There are too many.
        QuotaError: The tenant has used up its tokens of this minute.
        Others: As `Gate.admit_file`.
    """
    most = service.settings.max_records_per_request
    if len(prompts) > most:
        raise LimitError(f"a request must have at most {most} prompts, got {len(prompts)}; send several")
    models = privacy.models or [model] * len(prompts)
    rest = privacy.records or [{}] * len(prompts)
    if not len(prompts) == len(models) == len(rest):
        raise UsageError(
            f"there must be one model and one record for each prompt, got prompts={len(prompts)}, "
            f"models={len(models)}, records={len(rest)}; leave out what is the same for all"
        )
    names = tuple(dict.fromkeys(models))
    if len(names) > MOST_MODELS:
        raise LimitError(f"a request must name at most {MOST_MODELS} models, got {len(names)}; send several")
    if any("token_ids" in record for record in rest):
        raise UsageError("the token ids must be in the prompt alone; take them out of rapt.records")
    query = query_from_json(
        privacy.manifest, [{**record, "token_ids": ids} for record, ids in zip(rest, prompts, strict=True)]
    )
    # Before anything is looked up or loaded, what is known without; what adapters add, before anything is computed.
    bare = sum(name in service.backbones for name in models)
    service.quotas.spend_tokens(caller.tenant, query.manifest.tokens + most_tokens * bare)
    service.gate.check_manifest(query.manifest)
    service.gate.check_records(query)
    adapters: dict[str, tuple[str, Adapter | None]] = {}
    for name in names:
        if name in service.backbones:
            check_vocabulary(query.manifest, expected=service.backbones[name].bundle.hash)
            adapters[name] = name, None
    tuned = [name for name in names if name not in adapters]
    for name, adapter in zip(tuned, tuned_adapters(service, tuned, caller), strict=True):
        check_tuned(query.manifest, card=adapter.card)
        adapters[name] = adapter.card.model, adapter
    admitted = [
        Prompt(record=record, backbone=adapters[name][0], adapter=adapters[name][1])
        for record, name in zip(query.records, models, strict=True)
    ]
    added = sum(prompt.added_positions + most_tokens * prompt.is_written_to for prompt in admitted if prompt.adapter)
    if added:
        service.quotas.spend_tokens(caller.tenant, added)
    return admitted


def check_answer(prompts: Sequence[Prompt], *, most_tokens: int, top: int) -> None:
    """Refuse what would be answered with too many numbers: they are kept, sorted and written as JSON (`LimitError`).

    Args:
        prompts: Admitted.
        most_tokens: Most that are written to each prompt whose answer is a text.
        top: Likeliest tokens that are told of each of these.
    """
    of_texts = most_tokens * top * sum(prompt.is_written_to for prompt in prompts)
    of_labels = sum(
        len(prompt.adapter.card.labels) for prompt in prompts if prompt.adapter and not prompt.is_written_to
    )
    if of_texts + of_labels > MOST_PROBABILITIES:
        raise LimitError(
            f"an answer must come of at most {MOST_PROBABILITIES} probabilities, classes of each prompt and likeliest "
            f"tokens of each token together, got {of_texts + of_labels}; send several requests, or lower logprobs"
        )

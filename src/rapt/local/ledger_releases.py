"""Privatizing through a ledger: what was released before is sent again, what is new is accounted for first.

The text and its label are separate releases. M(x) depends on the text and the mechanism alone, so it is stored without
plain tokens, and serves a file with other plain tokens or other labels at no cost; a randomized label is stored apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from rapt.errors import LedgerError
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import Ledger
from rapt.local.ledger_entries import Release
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import RANDOMIZED_RESPONSE, mechanism_to_json
from rapt.wire.privatized_file import PrivatizedRecord


def privatize_through(
    ledger: Ledger,
    privatizer: Privatizer,
    texts: Sequence[str],
    *,
    labels: Sequence[int] | None,
    response: RandomizedResponse | None,
    stream: RandomStream,
    first_position: int = 0,
    redraw: bool = False,
) -> list[PrivatizedRecord]:
    """One record for each text, every one of them accounted for when this returns.

    Args:
        ledger: Open.
        privatizer: The setting.
        texts: In clear; the ledger keeps a keyed hash of each.
        labels: Index of each text's true label, or None where no labels are sent.
        response: Randomizes labels; None sends them in clear, which the ledger does not count.
        stream: Of labels, plain tokens and noise.
        first_position: Position of the first text in its file, for messages.
        redraw: Draw and pay anew for every record.

    Raises:
        BudgetError: A record would exceed a cap; none of these texts was released.
        LedgerError: The ledger is busy or damaged.
        CorpusError: As `Privatizer.privatize`.
        UsageError: As `Privatizer.privatize`.
    """
    setting = text_setting(privatizer, stream)
    hashes = [ledger.key.release_hash(text, setting=setting) for text in texts]
    found: list[str | None] = [None] * len(texts) if redraw else ledger.find(hashes)
    records = privatizer.privatize(
        texts,
        labels=labels,
        stream=stream,
        first_position=first_position,
        known=[None if stored is None else _ids(stored) for stored in found],
    )
    owners = [ledger.key.text_hash(text) for text in texts]
    eta = privatizer.mechanism.setting.eta
    releases = [
        Release(
            kind="text",
            setting=setting,
            text_hash=owner,
            release_hash=release_hash,
            released=json.dumps({"token_ids": record.token_ids}, separators=(",", ":")),
            position=position,
            tokens=len(record.token_ids),
            eta=eta,
        )
        for position, (record, owner, release_hash, stored) in enumerate(
            zip(records, owners, hashes, found, strict=True), first_position
        )
        if stored is None
    ]
    new = len(releases)
    if labels is not None and response is not None:
        drawn = response.randomize(labels, rng=stream.generator)
        releases += _label_releases(
            ledger, texts, labels, drawn, owners=owners, response=response, stream=stream, first_position=first_position
        )
    answers = ledger.commit(releases, redraw=redraw) if releases else []
    ids = iter(answers[:new])
    records = [
        record if stored is not None else replace(record, token_ids=_ids(next(ids)))
        for record, stored in zip(records, found, strict=True)
    ]
    if response is None or labels is None:
        return records
    return [replace(record, label=_label(answer)) for record, answer in zip(records, answers[new:], strict=True)]


def stored_token_ids(
    ledger: Ledger, privatizer: Privatizer, texts: Sequence[str], *, stream: RandomStream
) -> list[tuple[int, ...] | None]:
    """M(x) of each text as it was last released with this setting, None where it never was; raises `LedgerError`."""
    setting = text_setting(privatizer, stream)
    found = ledger.find([ledger.key.release_hash(text, setting=setting) for text in texts])
    return [None if stored is None else _ids(stored) for stored in found]


def text_setting(privatizer: Privatizer, stream: RandomStream) -> str:
    """All that M(x) depends on beside the text, as canonical JSON.

    A release drawn from a seed protects nothing, so it never answers for a secure one: the seed is part of the setting.
    """
    return _canonical(
        {
            "mechanism": mechanism_to_json(privatizer.mechanism.setting),
            "vocabulary_hash": privatizer.vocabulary.hash,
            "truncate_to": privatizer.truncate_to,
            "insecure_seed": stream.provenance.insecure_seed,
        }
    )


def _label_releases(
    ledger: Ledger,
    texts: Sequence[str],
    labels: Sequence[int],
    drawn: Sequence[int],
    *,
    owners: Sequence[bytes],
    response: RandomizedResponse,
    stream: RandomStream,
    first_position: int,
) -> list[Release]:
    stated = {
        "mechanism": RANDOMIZED_RESPONSE,
        "epsilon": response.epsilon,
        "classes": response.classes,
        "insecure_seed": stream.provenance.insecure_seed,
    }
    setting = _canonical(stated)
    # The true label is part of the input, hence of the keyed hash, and of nothing that is written down.
    inputs = [_canonical(stated | {"label": label}) for label in range(response.classes)]
    return [
        Release(
            kind="label",
            setting=setting,
            text_hash=owner,
            release_hash=ledger.key.release_hash(text, setting=inputs[label]),
            released=json.dumps({"label": released}, separators=(",", ":")),
            position=position,
            label_epsilon=response.epsilon,
        )
        for position, (text, owner, label, released) in enumerate(
            zip(texts, owners, labels, drawn, strict=True), first_position
        )
    ]


def _canonical(value: dict[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _ids(stored: str) -> tuple[int, ...]:
    ids = _parse(stored).get("token_ids")
    if not isinstance(ids, list) or not all(type(item) is int and item >= 0 for item in ids):
        raise LedgerError("a stored release must be token ids, got a damaged row; see `rapt ledger verify`")
    return tuple(ids)


def _label(stored: str) -> int:
    label = _parse(stored).get("label")
    if type(label) is not int:
        raise LedgerError("a stored label must be a number, got a damaged row; see `rapt ledger verify`")
    return label


def _parse(stored: str) -> dict[str, object]:
    try:
        value = json.loads(stored)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}

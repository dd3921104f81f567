"""Texts through a ledger: what is known of them is looked up, the rest is drawn, and all of it is accounted for.

Looking up and accounting happen in the process that has the ledger. Drawing may happen in another one: a draw that
turns out to be known by then is dropped, unseen.

*Two releases a record and more.* Each text and the label are releases of their own. M(x) depends on the tokens of the
text and the mechanism alone, so it is stored without plain tokens, and serves a file with other plain tokens or other
labels at no cost. Equal texts of one record are different releases, or the record would show that they are equal.

*A label is drawn once.* It belongs to all texts of its record. What answers a second time is the first draw, whatever
the true label is by then: a draw that came anew only where the label had changed would tell that it had. A label that
was corrected is sent by a new draw on request, and costs its ε again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger import Ledger
from rapt.local.ledger_file import Budget, Release
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.local.records import Chunk, ChunkSetting, privatize_records, put_text
from rapt.wire.manifest import NO_PLAIN_TOKENS, RANDOMIZED_RESPONSE
from rapt.wire.mechanism_setting import dump_mechanism
from rapt.wire.policy_setting import dump_policy
from rapt.wire.privatized_file import PrivatizedPart, PrivatizedRecord, list_privatized_texts


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A text that is about to be released: its hashes, and what is stored of it."""

    text_hash: bytes
    content_hash: bytes
    release_hash: bytes
    tokens: int
    runs: tuple[int, ...]
    stored: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class _PlannedLabel:
    """A label that is about to be released: the hashes of its record."""

    text_hash: bytes
    content_hash: bytes
    release_hash: bytes


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Plan of the releases of a chunk, in order: what a ledger has of its texts. Its `repr` shows hashes.

    Attributes:
        chunk: Chunk with the stored releases of its texts.
        texts: Planned releases of texts, by the part of the record.
        labels: Planned releases of labels; empty where none is randomized.
    """

    chunk: Chunk
    texts: Mapping[PrivatizedPart, Sequence[_Planned]]
    labels: Sequence[_PlannedLabel]


def privatize_through(
    ledger: Ledger, chunk: Chunk, setting: ChunkSetting, *, stream: RandomStream, redraw: bool = False
) -> list[PrivatizedRecord]:
    """Return one record for each record of the chunk, every one of them accounted for when this returns.

    Args:
        ledger: Ledger that is open.
        chunk: Texts and labels in clear; the ledger keeps keyed hashes of the texts.
        setting: Privatization of the records; labels that it does not randomize are sent in clear and not counted.
        stream: Source of labels, plain tokens and noise.
        redraw: Whether every text and label is drawn and paid for anew.

    Raises:
        BudgetError: A record would exceed a cap; none of these records was released.
        LedgerError: The ledger is busy or damaged.
        CorpusError: The reasons of `privatize_records`.
        UsageError: The reasons of `privatize_records`, or the noise comes from a seed.
    """
    plan = plan_releases(ledger, chunk, setting, redraw=redraw)
    records = privatize_records(plan.chunk, setting, stream=stream)
    return settle_releases(ledger, plan, records, setting, redraw=redraw)


def privatize_chunks(
    chunks: Iterator[Chunk], setting: ChunkSetting, *, stream: RandomStream, ledger: Ledger | None, redraw: bool
) -> Generator[list[PrivatizedRecord], None, None]:
    """Give the records of each chunk, in order; with a ledger accounted for, and it raises as `privatize_through`."""
    for chunk in chunks:
        if ledger is None:
            yield privatize_records(chunk, setting, stream=stream)
        else:
            yield privatize_through(ledger, chunk, setting, stream=stream, redraw=redraw)


def plan_releases(ledger: Ledger, chunk: Chunk, setting: ChunkSetting, *, redraw: bool = False) -> ReleasePlan:
    """Look up what a ledger has of the texts of a chunk; nothing is drawn or spent.

    Raises:
        LedgerError: The ledger is busy or damaged.
        CorpusError: The reasons of `Privatizer.contents`.
        UsageError: The noise comes from a seed: whoever knows it reads the text, and no sum says how little is left.
    """
    if setting.manifest.randomness.insecure_seed is not None:
        raise UsageError(
            "a ledger must count what noise protects, and noise from a seed protects nothing; leave out the seed, or "
            "the ledger"
        )
    bare = setting.privatizer.with_plain_tokens(NO_PLAIN_TOKENS)
    described, vocabulary = write_text_setting(setting), setting.privatizer.vocabulary.hash
    key, texts = ledger.key, chunk.privatized_texts
    contents = {
        part: (setting.privatizer if part == "first" else bare).contents(own, first_position=chunk.position)
        for part, own in texts.items()
    }
    marks = {part: setting.privatizer.marks(own, first_position=chunk.position) for part, own in texts.items()}
    hashes = {
        part: [
            key.content_hash([content, mark] if mark else [content], vocabulary_hash=vocabulary)
            for content, mark in zip(own, marks[part], strict=True)
        ]
        for part, own in contents.items()
    }
    copies = {part: _count_copies(hashes, part) for part in hashes}
    planned: dict[PrivatizedPart, list[_Planned]] = {}
    for part, own in texts.items():
        names = [
            key.release_hash(content_hash, setting=described, copy=copy)
            for content_hash, copy in zip(hashes[part], copies[part], strict=True)
        ]
        stored: Sequence[str | None] = [None] * len(names) if redraw else ledger.find(names)
        planned[part] = [
            _Planned(
                text_hash=key.text_hash([text]),
                content_hash=content_hash,
                release_hash=name,
                tokens=len(content),
                runs=() if found is not None else key.run_hashes(content, vocabulary_hash=vocabulary),
                stored=None if found is None else _parse_ids(found),
            )
            for text, content, content_hash, name, found in zip(
                own, contents[part], hashes[part], names, stored, strict=True
            )
        ]
    known = {part: [text.stored for text in own] for part, own in planned.items()}
    return ReleasePlan(
        chunk=replace(chunk, known=known),
        texts=planned,
        labels=list(_plan_labels(ledger, chunk, setting, contents=list(contents.values()))),
    )


def settle_releases(
    ledger: Ledger,
    plan: ReleasePlan,
    records: Sequence[PrivatizedRecord],
    setting: ChunkSetting,
    *,
    redraw: bool = False,
) -> list[PrivatizedRecord]:
    """Account for the records that were drawn by a plan, and give back those that may leave.

    Raises:
        BudgetError: A record would exceed a cap; none of these records was released.
        LedgerError: The ledger is busy or damaged.
    """
    described = write_text_setting(setting)
    names = setting.manifest.labels or ()
    places: list[tuple[int, PrivatizedPart | None]] = []
    releases: list[Release] = []
    for place, record in enumerate(records):
        position = plan.chunk.position + place
        for part, ids in zip(plan.texts, list_privatized_texts(record, setting.manifest), strict=True):
            text = plan.texts[part][place]
            if text.stored is None:
                places.append((place, part))
                releases.append(_release_text(text, ids, setting, described=described, position=position))
        if plan.labels:
            assert setting.response is not None
            assert record.label is not None
            label = plan.labels[place]
            places.append((place, None))
            releases.append(
                Release(
                    kind="label",
                    setting=_describe_labels(setting),
                    text_hash=label.text_hash,
                    content_hash=label.content_hash,
                    release_hash=label.release_hash,
                    released=json.dumps({"label": names[record.label]}, separators=(",", ":")),
                    position=position,
                    on_text=setting.response.epsilon,
                    in_all=setting.response.epsilon,
                )
            )
    answers = ledger.commit(releases, redraw=redraw) if releases else []
    ledger.tally.answered[find_budget(setting.privatizer)] += sum(
        text.stored is not None for own in plan.texts.values() for text in own
    )
    settled = list(records)
    for (place, changed), answer in zip(places, answers, strict=True):
        if changed is None:
            settled[place] = replace(settled[place], label=_parse_label(answer, names))
        else:
            settled[place] = put_text(settled[place], changed, _parse_ids(answer))
    return settled


def write_text_setting(setting: ChunkSetting) -> str:
    """Write all that M(x) depends on beside the tokens of the text, as canonical JSON."""
    described: dict[str, Any] = {
        "mechanism": dump_mechanism(setting.privatizer.mechanism.setting),
        "vocabulary_hash": setting.privatizer.vocabulary_hash,
        "length_bucket": setting.manifest.arrangement.length_bucket,
    }
    # Masks and pseudonyms are in the tokens already.
    if any(one.strength is not None for one in setting.manifest.policy):
        described["policy"] = dump_policy(setting.manifest.policy)
    return _write_canonical(described)


def find_budget(privatizer: TextPrivatizer) -> Budget:
    """Return the budget that a text privatized so is paid from."""
    return "text" if privatizer.mechanism.setting.unit == "text" else "metric"


def _release_text(
    text: _Planned, ids: tuple[int, ...], setting: ChunkSetting, *, described: str, position: int
) -> Release:
    stated = setting.privatizer.mechanism.setting
    if stated.unit == "text":
        on_text = in_all = stated.epsilon
    else:
        # In all: ε of the release against a text whose tokens all lie at distance 1 from those of this one.
        on_text = setting.manifest.weakest_eta
        in_all = on_text * text.tokens
    return Release(
        kind=find_budget(setting.privatizer),
        setting=described,
        text_hash=text.text_hash,
        content_hash=text.content_hash,
        release_hash=text.release_hash,
        released=json.dumps({"token_ids": ids}, separators=(",", ":")),
        position=position,
        tokens=text.tokens,
        on_text=on_text,
        in_all=in_all,
        runs=text.runs,
    )


def _count_copies(hashes: Mapping[PrivatizedPart, Sequence[bytes]], part: PrivatizedPart) -> list[int]:
    """For each record, how many of its texts before this one have the same tokens."""
    before = list(hashes)[: list(hashes).index(part)]
    return [sum(hashes[other][place] == own for other in before) for place, own in enumerate(hashes[part])]


def _plan_labels(
    ledger: Ledger, chunk: Chunk, setting: ChunkSetting, *, contents: Sequence[Sequence[Sequence[int]]]
) -> Iterator[_PlannedLabel]:
    if setting.response is None or chunk.labels is None:
        return
    described = _describe_labels(setting)
    columns = [chunk.texts, *chunk.others.values()]
    for texts, ids in zip(zip(*columns, strict=True), zip(*contents, strict=True), strict=True):
        content_hash = ledger.key.content_hash(ids, vocabulary_hash=setting.privatizer.vocabulary.hash)
        yield _PlannedLabel(
            text_hash=ledger.key.text_hash(texts),
            content_hash=content_hash,
            release_hash=ledger.key.release_hash(content_hash, setting=described),
        )


def _describe_labels(setting: ChunkSetting) -> str:
    """All that a label's release depends on beside its record: the names too, in whichever order they are listed."""
    assert setting.response is not None
    names = json.dumps(sorted(setting.manifest.labels or ()))
    return _write_canonical(
        {
            "mechanism": RANDOMIZED_RESPONSE,
            "epsilon": setting.response.epsilon,
            "classes": setting.response.classes,
            "names": "sha256:" + hashlib.sha256(names.encode("ascii")).hexdigest(),
        }
    )


def _write_canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parse_ids(stored: str) -> tuple[int, ...]:
    ids = _parse(stored).get("token_ids")
    if not isinstance(ids, list) or not all(type(item) is int and item >= 0 for item in ids):
        raise LedgerError("a stored release must be token ids, got a damaged row; see `rapt ledger verify`")
    return tuple(ids)


def _parse_label(stored: str, names: Sequence[str]) -> int:
    name = _parse(stored).get("label")
    if not isinstance(name, str) or name not in names:
        raise LedgerError("a stored label must be one of the classes, got a damaged row; see `rapt ledger verify`")
    return names.index(name)


def _parse(stored: str) -> dict[str, Any]:
    try:
        value = json.loads(stored)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}

"""True tokens that are part of a named entity: a person, a place, a date, as spaCy's small English model sees them.

For the score alone: the kinds come from the text in clear, with its capital letters. An entity counts as recovered when
every token of it is. The model finds about 85 of 100 entities of news text by its own account, fewer in text without
capital letters, so these figures are about what it found and not about all names.

What kind of words a guess recovers: by frequency, by class, whole words and numbers, and the text as a whole.

Frequency and class belong to the true token and are public properties of it; nothing here names a token. The classes
are the coarse ones by rule of `token_tags`, one a token, whatever its place in a text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.intervals import Share, compute_clustered_share
from rapt.audit.language.layout import mark_pieces, write_rows
from rapt.audit.truth import NO_OTHERS, GoneEntity, Truth, check_parts
from rapt.audit.view import PART_NAMES, AdversaryView, Guess
from rapt.errors import AuditError
from rapt.local.mechanisms.token_tags import tag_by_rule
from rapt.local.policy.recognizers import explain_missing_model, load_model
from rapt.local.records import Part
from rapt.local.vocabulary import Vocabulary
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]

_BATCH: Final = 200


def explain_missing_entities() -> str | None:
    """Reason why entities cannot be looked for, or None where they can."""
    missing = explain_missing_model()
    return None if missing is None else f"entities by kind were not counted: that {missing}"


def add_entities(
    view: AdversaryView,
    truth: Truth,
    texts: Sequence[str],
    *,
    others: Mapping[Part, Sequence[str]] = NO_OTHERS,
    truncate_to: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Truth:
    """The truth, with the entity that each token is part of.

    Args:
        view: View of the records that are attacked.
        truth: The texts in clear.
        texts: Texts of the whole corpus, in its order: the truth knows which of them are attacked.
        others: The other texts of a record that went through the mechanism.
        truncate_to: Tokens that each text was cut to, as given when the file was privatized.
        on_progress: Called with the share done.

    Raises:
        AuditError: spaCy is not installed, or the texts are not those of the truth.
    """
    if (reason := explain_missing_entities()) is not None:
        raise AuditError(reason)
    places = range(len(texts)) if truth.records is None else truth.records.tolist()
    check_parts(view.manifest, others)
    columns = [texts, *(others[part] for part in view.parts if part != "first")]
    shortest = min(map(len, columns))
    if len(places) != len(view.records) or (len(places) and max(places) >= shortest):
        raise AuditError(f"the texts must be those of the file, got {shortest}; give the corpus it was made from")
    attacked = [column[place] for place in places for column in columns]
    spans = Vocabulary(view.bundle).spans(attacked)
    entity: list[Ints] = []
    kinds: list[str] = []
    for number, (found, tokens, length) in enumerate(
        zip(_iterate_entities(attacked), spans, view.lengths, strict=True)
    ):
        here: Ints = np.full(len(tokens[:truncate_to]), -1, dtype=np.int64)
        if len(here) != length:
            raise AuditError(
                f"the texts must be those of the file, got {len(here)} tokens for {length} in text {number}"
            )
        for start, end, kind in found:
            inside = [i for i, (left, right) in enumerate(tokens[: len(here)]) if left < end and start < right]
            if inside:
                here[inside] = len(kinds)
                kinds.append(kind)
        entity.append(here)
        if on_progress is not None:
            on_progress((number + 1) / len(attacked))
    return replace(truth, entity=np.concatenate(entity), entity_kinds=tuple(kinds))


def _iterate_entities(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """(start, end, kind) of each entity of each text, in characters."""
    for document in load_model().pipe(texts, batch_size=_BATCH):
        yield [(found.start_char, found.end_char, found.label_) for found in document.ents]


# Ranks by frequency in the audited text, the most frequent token first.
_BANDS: Final = (("100 most frequent", 100), ("next 900", 1000), ("next 9,000", 10_000), ("rarer", None))
_PIECE: Final = "##"
_STARTS: Final = ("\u2581", "\u0120")  # sentencepiece, byte-level BPE
_LONGEST_GRAM: Final = 4


@dataclass(frozen=True, kw_only=True)
class Group:
    """The first guesses among some of the tokens or words.

    Attributes:
        name: Name for people.
        first: Share that was named rightly.
        unchanged: Share that left as it was.
        blind: Share that is right without the file: always the most frequent of these, its frequency known.
    """

    name: str
    first: Share
    unchanged: float
    blind: float


@dataclass(frozen=True, kw_only=True)
class Detail:
    """The parts of one attack's success.

    Attributes:
        texts: Recovery by text of a record, such as the second of a pair; empty where a record is one text.
        bands: Recovery by frequency of the word.
        classes: Recovery by kind of word.
        words: Whole words, of one or more tokens; None where there are none.
        long_words: Whole words of two tokens or more.
        numbers: Whole numbers: runs of digits.
        entities: Whole named entities, by kind, the most frequent first; empty where nobody looked for them.
        bleu: Score of the reconstructed texts against the true ones, BLEU-4 over tokens, between 0 and 1.
        bleu_unattacked: BLEU of the privatized texts as they are.
        similarity: Mean cosine of the mean vectors of a reconstructed and a true text, the table's mean taken off.
        similarity_unattacked: Similarity of the privatized texts as they are.
    """

    texts: tuple[Group, ...]
    bands: tuple[Group, ...]
    classes: tuple[Group, ...]
    words: Group | None
    long_words: Group | None
    numbers: Group | None
    entities: tuple[Group, ...]
    bleu: float
    bleu_unattacked: float
    similarity: float
    similarity_unattacked: float


def score_in_detail(guess: Guess, *, view: AdversaryView, truth: Truth) -> Detail:
    """The parts of the success of a guess of this view."""
    true, seen, first = truth.token_ids, view.observed, guess.token_ids[:, 0]
    text = np.repeat(np.arange(len(view.lengths)), view.lengths)
    record, part = np.divmod(text, len(view.parts))
    hits, same = first == true, seen == true
    names, classes, written = _list_properties(view.bundle)
    times = np.bincount(true, minlength=len(view.bundle.embeddings))
    rank = np.empty(len(times), dtype=np.int64)
    rank[np.argsort(-times, kind="stable")] = np.arange(len(rank))
    bands, start = [], 0
    for name, end in _BANDS:
        inside = (rank[true] >= start) & (rank[true] < (len(rank) if end is None else end))
        bands.append(_group(name, hits, same, record, true, inside))
        start = len(rank) if end is None else end
    kinds = [_group(name, hits, same, record, true, classes[true] == place) for place, name in enumerate(names)]
    begins = _mark_word_begins(true, text, mark_pieces(view.bundle))
    digits = _number_runs_of_digits(true, text, written)
    texts = [_group(PART_NAMES[name], hits, same, record, true, part == place) for place, name in enumerate(view.parts)]
    return Detail(
        texts=tuple(group for group in texts if group) if len(view.parts) > 1 else (),
        bands=tuple(group for group in bands if group),
        classes=tuple(group for group in kinds if group),
        words=_count_spans("words", hits, same, record, true, begins, least=1),
        long_words=_count_spans("words of several tokens", hits, same, record, true, begins, least=2),
        numbers=_count_spans("numbers", hits, same, record, true, digits, least=1),
        entities=_count_by_kind(truth, hits, same, record),
        bleu=bleu(first, true, view.lengths),
        bleu_unattacked=bleu(seen, true, view.lengths),
        similarity=_compare_texts(first, true, text, view.bundle),
        similarity_unattacked=_compare_texts(seen, true, text, view.bundle),
    )


def bleu(guessed: Ints, true: Ints, lengths: Ints) -> float:
    """BLEU of token texts of equal lengths (Papineni et al. 2002), smoothed by one above order 1 (Lin and Och 2004).

    Args:
        guessed: Tokens of all texts, (n,).
        true: True tokens of all texts, (n,).
        lengths: Lengths of each text.
    """
    matched, possible = np.zeros(_LONGEST_GRAM), np.zeros(_LONGEST_GRAM)
    start = 0
    for length in lengths.tolist():
        ours, theirs = guessed[start : start + length].tolist(), true[start : start + length].tolist()
        for n in range(1, min(_LONGEST_GRAM, length) + 1):
            left, right = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (ours, theirs))
            matched[n - 1] += (left & right).total()
            possible[n - 1] += length - n + 1
        start += length
    smoothing = np.array([0.0] + [1.0] * (_LONGEST_GRAM - 1))
    if matched[0] == 0:
        return 0.0
    return math.exp(float(np.log((matched + smoothing) / np.maximum(possible + smoothing, 1)).mean()))


@lru_cache(maxsize=2)
def _list_properties(bundle: VocabularyBundle) -> tuple[tuple[str, ...], Ints, tuple[str, ...]]:
    """Names of the classes, the class of each row, and the written form of each row."""
    vocabulary = Vocabulary(bundle)
    tags = tag_by_rule(vocabulary)
    return tags.names, tags.classes, write_rows(bundle)


def _mark_word_begins(true: Ints, text: Ints, pieces: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a word begins at each token: it is the first of its text, or not a piece."""
    begins = ~pieces[true]
    begins[np.flatnonzero(np.diff(text, prepend=-1))] = True
    return begins


def _number_runs_of_digits(true: Ints, text: Ints, written: tuple[str, ...]) -> Ints:
    """For each token the number of the run of digits that it is in, or -1."""
    digit = np.array([name.removeprefix(_PIECE).lstrip("".join(_STARTS)).isdigit() for name in written])[true]
    new = digit & (np.diff(text, prepend=-1).astype(bool) | ~np.concatenate([[False], digit[:-1]]))
    return np.where(digit, np.cumsum(new) - 1, -1)


def _group(
    name: str,
    hits: NDArray[np.bool_],
    same: NDArray[np.bool_],
    record: Ints,
    units: Ints,
    inside: NDArray[np.bool_],
) -> Group | None:
    """The group of these units, which are equal where their numbers are."""
    lengths = np.bincount(record[inside], minlength=1)
    first = compute_clustered_share(hits[inside], lengths)
    if first is None:
        return None
    blind = float(np.bincount(units[inside]).max() / first.n)
    return Group(name=name, first=first, unchanged=float(same[inside].mean()), blind=blind)


def _count_spans(
    name: str,
    hits: NDArray[np.bool_],
    same: NDArray[np.bool_],
    record: Ints,
    true: Ints,
    begins: NDArray[np.bool_] | Ints,
    *,
    least: int,
    gone: Sequence[GoneEntity] = (),
) -> Group | None:
    """Runs of tokens that count as hit when every token is, and entities without a token, which never do."""
    run = (np.cumsum(begins) - 1 if begins.dtype == bool else begins).astype(np.int64)
    inside = run >= 0
    if not inside.any() and not gone:
        return None
    runs, place = np.unique(run[inside], return_inverse=True)
    size = np.bincount(place)
    whole = [np.bincount(place, part[inside]) == size for part in (hits, same)]
    home = np.zeros(len(runs), dtype=np.int64)
    home[place] = record[inside]
    number: dict[bytes, int] = {}
    parts = np.split(true[inside][np.argsort(place, kind="stable")], np.cumsum(size)[:-1]) if len(size) else []
    units = [number.setdefault(part.tobytes(), len(number)) for part in parts]
    counted: NDArray[np.bool_] = np.greater_equal(size, least)
    if not gone:
        return _group(name, whole[0], whole[1], home, np.array(units, dtype=np.int64), counted)
    home = np.concatenate([home, np.array([one.record for one in gone], dtype=np.int64)])
    units += [len(number) + one.name for one in gone]
    order = np.argsort(home, kind="stable")  # a share is over records, one after another
    left = np.zeros(len(gone), dtype=bool)
    first, same_whole = (np.concatenate([part, left])[order] for part in whole)
    counted = np.concatenate([counted, ~left])[order]
    return _group(name, first, same_whole, home[order], np.array(units, dtype=np.int64)[order], counted)


def _count_by_kind(truth: Truth, hits: NDArray[np.bool_], same: NDArray[np.bool_], record: Ints) -> tuple[Group, ...]:
    """Whole entities of each kind that the text has."""
    if truth.entity is None:
        return ()
    found = []
    kinds = np.array([*truth.entity_kinds, ""])[truth.entity]  # -1 takes the last
    present = np.array(truth.entity_kinds, dtype=str)[np.unique(truth.entity[truth.entity >= 0])].tolist()
    for kind, _ in Counter([*present, *(one.kind for one in truth.gone)]).most_common():
        gone = [one for one in truth.gone if one.kind == kind]
        own = np.where(kinds == kind, truth.entity, -1)
        group = _count_spans(kind, hits, same, record, truth.token_ids, own, least=1, gone=gone)
        found += [] if group is None else [group]
    return tuple(found)


def _compare_texts(guessed: Ints, true: Ints, text: Ints, bundle: VocabularyBundle) -> float:
    table = bundle.embeddings - bundle.embeddings[bundle.eligible].mean(axis=0)
    cosines = []
    for part in _iterate_runs(text):
        left, right = table[guessed[part]].mean(axis=0), table[true[part]].mean(axis=0)
        length = float(np.linalg.norm(left) * np.linalg.norm(right))
        cosines.append(float(left @ right) / length if length > 0 else 0.0)
    return float(np.mean(cosines))


def _iterate_runs(text: Ints) -> Iterator[slice]:
    starts = np.flatnonzero(np.diff(text, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(text)), strict=True):
        yield slice(int(start), int(end))

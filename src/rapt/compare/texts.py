"""The labelled texts of a comparison, in clear: which train, which judge, and in which order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary
from rapt.narration import SILENT, Narrator


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts or pairs of them, and the places of their labels in `names`. A `repr` shows neither.

    Attributes:
        texts: Single texts, or the first of each pair.
        labels: One for each text or pair.
        names: Names of the classes.
        seconds: The second text of each pair; empty where there are single texts.
    """

    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    names: tuple[str, ...]
    seconds: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Number of texts, or of pairs."""
        return len(self.texts)

    @property
    def pairs(self) -> bool:
        """Whether each record has two texts."""
        return bool(self.seconds)

    def at(self, places: Sequence[int] | NDArray[np.int64]) -> LabelledTexts:
        """The texts or pairs at these places, in their order."""
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
            seconds=tuple(self.seconds[place] for place in places) if self.pairs else (),
        )

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The texts, or the first and the second ones."""
        return (self.texts, self.seconds) if self.pairs else (self.texts,)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Texts to train on and texts to judge; no text is in both, be it first or second of a pair.

    Attributes:
        training: Labelled texts for training.
        evaluation: Labelled texts for evaluation.
        public: Anybody's, without labels, for arms whose plain tokens are sentences; empty where there are none.
        further: The same texts split in other ways, each with as many to judge on and no text to judge on in common;
            empty unless seeds take turns.
    """

    training: LabelledTexts
    evaluation: LabelledTexts
    public: tuple[str, ...] = field(default=(), repr=False)
    further: tuple[Split, ...] = ()

    @property
    def turns(self) -> tuple[Split, ...]:
        """Every way that the texts are split in, this one first."""
        return (self, *self.further)

    def turn_of(self, seed: int) -> Split:
        """How they are split for a seed: seeds take turns."""
        return self.turns[seed % len(self.turns)]

    @property
    def digest(self) -> str:
        """SHA-256 over both parts; two comparisons of other texts are told apart by it."""
        found = hashlib.sha256()
        for part in (self.training, self.evaluation):
            for label, *record in zip(part.labels, *part.parts, strict=True):
                found.update(hashlib.sha256("\0".join([str(label), *record]).encode()).digest())
            found.update(b"|")
        for text in self.public:
            found.update(hashlib.sha256(text.encode()).digest())
        for other in self.further:
            found.update(b"|" + other.digest.encode())
        return found.hexdigest()

    @property
    def most_frequent_label_is_right(self) -> tuple[bool, ...]:
        """Whether the label that most training texts have is that of each evaluation text."""
        counts = Counter(self.training.labels)
        named = min(counts, key=lambda label: (-counts[label], label))
        return tuple(label == named for label in self.evaluation.labels)


def read_split(
    training: Path,
    *,
    evaluation: Path | None,
    public: Path | None = None,
    training_records: int | None,
    evaluation_records: int | None,
    text_column: str = "text",
    label_column: str = "label",
    text_column_2: str | None = None,
    min_words: int = 1,
    cross_validate: bool = False,
) -> Split:
    """The first texts of both parts in the order of the SHA-256 of their text, which depends on nothing else.

    A training pair that shares a text with a pair to be judged is left out.

    Args:
        training: File of labelled texts.
        evaluation: Labelled texts to judge on; None keeps a fifth of `training` for it.
        public: Texts of any kind that are nobody's secret, in the same text column; None for none.
        training_records: Most training records; None takes all.
        evaluation_records: Most evaluation records; None takes all.
        text_column: Name of the column.
        label_column: Name of the column.
        text_column_2: Name of the column of the second text of a pair; None for single texts.
        min_words: Shorter training texts are left out, and pairs with one.
        cross_validate: Whether seeds take turns to keep each of the five fifths of `training`, in place of the first.

    Raises:
        CorpusError: A text has no label, a part is empty or of one class, or a label to be judged never occurs in
            training.
        UsageError: A column is named twice, or there is nothing to take turns with.
    """
    columns = [text_column] if text_column_2 is None else [text_column, text_column_2]
    if len({label_column, *columns}) != 1 + len(columns):
        raise UsageError("the texts and the label of a record must stand in different columns; name each once")
    if cross_validate and evaluation is not None:
        raise UsageError("cross-validation must judge on the texts to train on; leave out `evaluation` or it")
    known = () if public is None else read_corpus(public, text_column=text_column, label_column=None)
    others = tuple(record.text for record in known)
    trained = _order_by_hash(training, columns=columns, label_column=label_column, min_words=min_words)
    if evaluation is None:
        parted = [_leave_fifth_out(trained, place) for place in range(_FIFTHS if cross_validate else 1)]
    else:
        parted = [(trained, _order_by_hash(evaluation, columns=columns, label_column=label_column, min_words=1))]
    first, *further = (
        _split(rest[:training_records], judged[:evaluation_records], others, pairs=text_column_2 is not None)
        for rest, judged in ((_leave_texts_out(judged, rest), judged) for rest, judged in parted)
    )
    return replace(first, further=tuple(further))


def cut_texts(split: Split, *, vocabulary: Vocabulary, most: int, narrator: Narrator = SILENT) -> Split:
    """Cut each text after its first `most` tokens, so that arms on tokens, on codes and at home read the same.

    Args:
        split: Texts of training and evaluation.
        vocabulary: Vocabulary of the backbone.
        most: Tokens that are left of a text at most; of each text of a pair.
        narrator: Takes how many were cut, and how many are not trained on because they now begin as one that is judged.

    Raises:
        UsageError: Nothing would be left of a text, or every training text would begin as one that is judged.
    """
    if most < 1:
        raise UsageError(f"truncate must be at least 1 token, got truncate={most}; raise it")

    def cut(texts: tuple[str, ...]) -> tuple[str, ...]:
        kept = list(texts)
        for place, spans in enumerate(vocabulary.spans(texts)):
            # A text that ends within a word may have other tokens, more of them in rare cases.
            for count in range(most if len(spans) > most else 0, 0, -1):
                kept[place] = texts[place][: spans[count - 1][1]]
                if len(vocabulary.encode([kept[place]])[0]) <= most:
                    break
        return tuple(kept)

    def cut_part(part: LabelledTexts) -> LabelledTexts:
        return replace(part, texts=cut(part.texts), seconds=cut(part.seconds))

    training, evaluation = cut_part(split.training), cut_part(split.evaluation)
    judged = {text for part in evaluation.parts for text in part}
    kept = [place for place, own in enumerate(zip(*training.parts, strict=True)) if judged.isdisjoint(own)]
    if not kept:
        raise UsageError(
            f"a training text must begin otherwise than those that are judged, got none for truncate={most}; raise it"
        )
    cut_of_each = [
        sum(
            old != new
            for before, after in zip(whole.parts, part.parts, strict=True)
            for old, new in zip(before, after, strict=True)
        )
        for whole, part in ((split.training, training), (split.evaluation, evaluation))
    ]
    narrator.say(
        f"cut after {most} tokens: {cut_of_each[0]:,} training texts and {cut_of_each[1]:,} evaluation texts; left out "
        f"of training, as they now begin like a text that is judged: {len(training.texts) - len(kept):,}"
    )
    return replace(
        split,
        training=training.at(kept),  # two texts may begin alike
        evaluation=evaluation,
        further=tuple(cut_texts(other, vocabulary=vocabulary, most=most) for other in split.further),
    )


# A text or a pair, and the name of its label.
_Record = tuple[tuple[str, ...], str]
_FIFTHS: Final = 5


def _leave_fifth_out(records: list[_Record], place: int) -> tuple[list[_Record], list[_Record]]:
    """All but a fifth, and that fifth; what five fifths of a whole number leave over is trained on."""
    fifth = len(records) // _FIFTHS
    start, end = place * fifth, (place + 1) * fifth
    return records[:start] + records[end:], records[start:end]


def _leave_texts_out(judged: list[_Record], records: list[_Record]) -> list[_Record]:
    seen = {text for texts, _ in judged for text in texts}
    return [record for record in records if seen.isdisjoint(record[0])]


def _split(trained: list[_Record], judged: list[_Record], public: tuple[str, ...], *, pairs: bool) -> Split:
    names = tuple(sorted({label for _, label in trained}))
    if len(names) < 2:
        raise CorpusError(f"training needs at least two classes, got {len(names)}; add texts of another")
    if not judged:
        raise CorpusError("a comparison needs texts to judge on, got 0; add some")
    if strangers := {label for _, label in judged} - set(names):
        raise CorpusError(
            f"every label to be judged must occur in training, got {len(strangers)} that do not; "
            "add texts of those classes, or leave them out of the evaluation"
        )
    place = {name: index for index, name in enumerate(names)}
    parts = [
        LabelledTexts(
            texts=tuple(texts[0] for texts, _ in part),
            labels=tuple(place[label] for _, label in part),
            names=names,
            seconds=tuple(texts[1] for texts, _ in part) if pairs else (),
        )
        for part in (trained, judged)
    ]
    return Split(training=parts[0], evaluation=parts[1], public=public)


def _order_by_hash(path: Path, *, columns: Sequence[str], label_column: str, min_words: int) -> list[_Record]:
    found: dict[tuple[str, ...], str] = {}
    for texts, label in _iterate_records(path, columns=columns, label_column=label_column):
        if all(text and len(text.split()) >= min_words for text in texts):
            found.setdefault(texts, label)
    return sorted(found.items(), key=lambda record: hashlib.sha256("\0".join(record[0]).encode()).digest())


def _iterate_records(path: Path, *, columns: Sequence[str], label_column: str) -> Iterator[_Record]:
    """The texts of each record with its label. Readers know one text a record, so a second is read beside the first."""
    first, *others = columns
    with ExitStack() as opened:
        labelled = opened.enter_context(closing(read_corpus(path, text_column=first, label_column=label_column)))
        beside = [opened.enter_context(closing(read_corpus(path, text_column=c, label_column=None))) for c in others]
        try:
            for record, *more in zip(labelled, *beside, strict=True):
                assert record.label is not None  # a reader that is asked for labels refuses a record without one
                yield tuple(own.text.strip() for own in (record, *more)), record.label
        except ValueError:
            raise CorpusError(
                "a corpus must stay as it is while it is read, got columns of different lengths; run it again"
            ) from None


def choose_crowd(texts: LabelledTexts, order: NDArray[np.int64], *, crowd: int) -> LabelledTexts:
    """The first texts in an order, with one of each class that occurs in it: nothing is tuned on a label without text.

    Where a rare class is not among them, its first text takes the place of the last one whose class has another.
    """
    chosen = order[:crowd].tolist()
    counts = Counter(texts.labels[place] for place in chosen)
    for place in order[crowd:].tolist():
        if texts.labels[place] not in counts:
            spare = [at for at, other in enumerate(chosen) if counts[texts.labels[other]] > 1]
            if not spare:
                break
            counts[texts.labels[chosen[spare[-1]]]] -= 1
            chosen[spare[-1]] = place
            counts[texts.labels[place]] = 1
    return texts.at(chosen)

"""The labelled texts of a comparison, in clear: which train, which judge, and in which order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from rapt.errors import CorpusError
from rapt.local.corpus import read_corpus


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts and the places of their labels in `names`. A `repr` shows neither."""

    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


@dataclass(frozen=True, kw_only=True)
class Split:
    """What is trained on and what is judged; no text is in both.

    Attributes:
        training: Labelled.
        evaluation: Labelled.
        public: Anybody's, without labels, for arms whose plain tokens are sentences; empty where there are none.
    """

    training: LabelledTexts
    evaluation: LabelledTexts
    public: tuple[str, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over both parts; two comparisons of other texts are told apart by it."""
        found = hashlib.sha256()
        for part in (self.training, self.evaluation):
            for text, label in zip(part.texts, part.labels, strict=True):
                found.update(hashlib.sha256(f"{label}\0{text}".encode()).digest())
            found.update(b"|")
        for text in self.public:
            found.update(hashlib.sha256(text.encode()).digest())
        return found.hexdigest()


def read_split(
    training: Path,
    *,
    evaluation: Path | None,
    public: Path | None = None,
    training_records: int | None,
    evaluation_records: int | None,
    text_column: str = "text",
    label_column: str = "label",
    min_words: int = 1,
) -> Split:
    """The first texts of both parts in the order of the SHA-256 of their text, which depends on nothing else.

    Args:
        training: Labelled texts.
        evaluation: Labelled texts to judge on; None keeps a fifth of `training` for it.
        public: Texts of any kind that are nobody's secret, in the same text column; None for none.
        training_records: At most so many; None takes all.
        evaluation_records: At most so many; None takes all.
        text_column: Name of the column.
        label_column: Name of the column.
        min_words: Shorter training texts are left out.

    Raises:
        CorpusError: A text has no label, a part is empty or of one class, or a label to be judged never occurs in
            training.
    """
    trained = _in_hash_order(training, text_column=text_column, label_column=label_column, min_words=min_words)
    if evaluation is None:
        fifth = len(trained) // 5
        judged, trained = trained[:fifth], trained[fifth:]
    else:
        judged = _in_hash_order(evaluation, text_column=text_column, label_column=label_column, min_words=1)
        seen = {text for text, _ in judged}
        trained = [pair for pair in trained if pair[0] not in seen]
    trained, judged = trained[:training_records], judged[:evaluation_records]
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
        LabelledTexts(texts=tuple(text for text, _ in part), labels=tuple(place[y] for _, y in part), names=names)
        for part in (trained, judged)
    ]
    known = () if public is None else read_corpus(public, text_column=text_column, label_column=None)
    return Split(training=parts[0], evaluation=parts[1], public=tuple(record.text for record in known))


def _in_hash_order(path: Path, *, text_column: str, label_column: str, min_words: int) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for record in read_corpus(path, text_column=text_column, label_column=label_column):
        assert record.label is not None  # a reader that is asked for labels refuses a record without one
        text = record.text.strip()
        if text and len(text.split()) >= min_words:
            found.setdefault(text, record.label)
    return sorted(found.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())

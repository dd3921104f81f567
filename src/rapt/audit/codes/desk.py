"""What the attackers of one file of codes share: what each holds, what it learned from, and what cannot run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.audit import Skipped
from rapt.audit.codes.authors import LEAST_TRIALS, Linking, link_authors
from rapt.audit.codes.naming import MOST_TEXTS
from rapt.audit.codes.readers import (
    READERS,
    RELEASES,
    Lesson,
    Reading,
    compare_lengths,
    count_words,
    explain_missing_torch,
    infer_column,
    judge_words,
    read_words,
    see_codes,
)
from rapt.local.codes.code_privatizer import Encoder, join_pair
from rapt.local.codes.subset import SubsetMechanism
from rapt.local.corpus import read_corpus
from rapt.local.policy.policy import Policy
from rapt.wire.code_bundle import split_into_units
from rapt.wire.privatized_file import PrivatizedFile

if TYPE_CHECKING:
    from rapt.audit.codes.models import Canary, Membership

# Public texts that an attacker learns from, and texts that membership is asked about, at most.
_MOST_PUBLIC: Final = 20_000
_MOST_MEMBERS: Final = 1000
_LEAST_PAIRS: Final = 20


@dataclass(frozen=True, kw_only=True, repr=False)
class Originals:
    """The texts that a file of codes was made from, for the judge, and those that an attacker holds.

    Attributes:
        texts: Texts in clear, in the order of the records.
        attributes: Columns to be inferred, by name.
        authors: Author of each text; empty where nobody says.
        public: Texts like the private ones, which an attacker learns from; empty lends him half of `texts`.
        labels: Labels that travel beside the codes elsewhere than in the attacked file; empty takes those in the file.
    """

    texts: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    authors: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


def read_originals(
    path: Path,
    *,
    text_column: str,
    second_column: str | None = None,
    attributes: Sequence[str] = (),
    author: str | None = None,
    public: Path | None = None,
    public_text_column: str = "text",
    policy: Policy | None = None,
) -> Originals:
    """Read the texts that a file of codes was made from, as its policy left them, and public ones as they are.

    Pairs are joined; public pairs have the same second column.

    Raises:
        CorpusError: A file cannot be read.
    """

    def read(column: str) -> tuple[str, ...]:
        return tuple(str(record.label) for record in read_corpus(path, text_column=text_column, label_column=column))

    def read_texts(place: Path, column: str, under: Policy | None) -> list[str]:
        texts = [record.text for record in read_corpus(place, text_column=column, label_column=None, policy=under)]
        if second_column is None:
            return texts
        others = read_corpus(place, text_column=second_column, label_column=None, policy=under)
        seconds = (record.text for record in others)
        return [join_pair(*pair) for pair in zip(texts, seconds, strict=True)]

    texts = tuple(read_texts(path, text_column, policy))
    known = set(texts)
    found = () if public is None else read_texts(public, public_text_column, None)
    own = dict.fromkeys(text for text in found if text.strip() and text not in known)
    return Originals(
        texts=texts,
        attributes={name: read(name) for name in attributes},
        authors=() if author is None else read(author),
        public=tuple(own)[:_MOST_PUBLIC],
    )


class CodeDesk:
    """What the attackers of one audit share: lessons, halves and what they skip."""

    def __init__(
        self,
        mechanism: SubsetMechanism,
        encoder: Encoder,
        codes: NDArray[np.float64],
        released: NDArray[np.int64],
        originals: Originals,
        public: NDArray[np.float64] | None,
        *,
        labels: Sequence[int],
        quick: bool,
        seed: int,
        rng: np.random.Generator,
    ) -> None:
        """Cut the texts into halves, and draw what the attackers learn from."""
        self.mechanism, self.encoder, self.codes, self.originals = mechanism, encoder, codes, originals
        self.quick, self.seed, self.rng = quick, seed, rng
        self.seen = see_codes(mechanism, released)
        order = rng.permutation(len(codes))
        self.learn, self.judge = order[: len(codes) // 2], order[len(codes) // 2 :]
        self.of_half = Lesson(learned=self._release(codes[self.learn]), asked=self.seen[self.judge])
        self.asked = self.judge if public is None else rng.permutation(len(codes))[:MOST_TEXTS]
        self.held = [originals.texts[place] for place in self.learn] if public is None else list(originals.public)
        self.lesson = (
            self.of_half if public is None else Lesson(learned=self._release(public), asked=self.seen[self.asked])
        )
        self.contents = encoder.vocabulary.encode(self.held)
        self.truth = encoder.vocabulary.encode([originals.texts[place] for place in self.asked])
        self.words = count_words(self.contents, self.truth)
        self.labelled = bool(labels)
        if labels and public is None:  # public texts have no labels of this file
            beside = np.eye(max(labels) + 1)[list(labels)]
            self.words = replace(self.words, learned_labels=beside[self.learn], asked_labels=beside[self.asked])
        self.readers = [name for name in READERS if self._explain_skipped(name) is None]

    def _release(self, codes: NDArray[np.float64], *, releases: int = RELEASES) -> tuple[NDArray[np.float64], ...]:
        return tuple(see_codes(self.mechanism, self.mechanism.privatize(codes, rng=self.rng)) for _ in range(releases))

    def _explain_skipped(self, reader: str) -> str | None:
        if reader == "linear":
            return None
        return "the audit was to be quick" if self.quick else explain_missing_torch()

    def read_words(self, skipped: list[Skipped]) -> Iterator[Reading]:
        """Yield how many words each reader names."""
        for reader in READERS:
            if (reason := self._explain_skipped(reader)) is not None:
                skipped.append(Skipped(attack=f"{reader} reader", reason=reason))
                continue
            yield from read_words(
                self.lesson, self.words, reader=reader, epsilon=self.mechanism.epsilon, seed=self.seed
            )
        if self.labelled and self.words.learned_labels is None:
            skipped.append(Skipped(attack="label-aware readers", reason="the public text has no labels of this file"))

    def write_words(self, model: str | None, skipped: list[Skipped]) -> Iterator[Reading]:
        """Yield how many words a language model names, if one was named."""
        if model is None:
            skipped.append(Skipped(attack="language model", reason="none was named; give `language_model`"))
            return
        if (reason := explain_missing_torch()) is not None:
            skipped.append(Skipped(attack="language model", reason=reason))
            return
        from rapt.audit.codes.decoder import MOST_JUDGED, write_words

        lesson = Lesson(learned=self.lesson.learned, asked=self.lesson.asked[:MOST_JUDGED])
        beside = self.words.asked_labels
        words = replace(
            self.words,
            asked=self.words.asked[:MOST_JUDGED],
            asked_labels=None if beside is None else beside[:MOST_JUDGED],
        )
        vocabulary = self.encoder.vocabulary
        scores = write_words(lesson, words, self.held, model=model, vocabulary=vocabulary, seed=self.seed)
        yield judge_words(words, scores, reader="language model", epsilon=self.mechanism.epsilon)

    def compare_lengths(self) -> Iterator[Reading]:
        """Yield how well readers say which of two texts is longer."""
        lengths = [[len(content) for content in contents] for contents in (self.contents, self.truth)]
        for reader in self.readers:
            found = compare_lengths(
                self.lesson, *lengths, reader=reader, epsilon=self.mechanism.epsilon, seed=self.seed
            )
            if found is not None:
                yield found

    def infer_columns(self) -> Iterator[Reading]:
        """Yield how well readers infer columns of the texts, which they learn from a half of them."""
        for name, values in self.originals.attributes.items():
            known, asked = ([values[place] for place in places] for places in (self.learn, self.judge))
            for reader in self.readers:
                yield infer_column(
                    self.of_half,
                    known,
                    asked,
                    name=name,
                    reader=reader,
                    epsilon=self.mechanism.epsilon,
                    seed=self.seed,
                )

    def link_authors(self, skipped: list[Skipped]) -> tuple[Linking, ...]:
        """Return how well authors are linked."""
        authors = self.originals.authors
        if not authors:
            skipped.append(Skipped(attack="authors", reason="nobody said who wrote what; give `author`"))
            return ()
        known, asked = ([authors[place] for place in places] for places in (self.learn, self.judge))
        learned = self.of_half.learned[0][:, :-1]
        found = link_authors(
            (learned, known), (self.of_half.asked[:, :-1], asked), epsilon=self.mechanism.epsilon, rng=self.rng
        )
        if not found:
            reason = f"there must be {LEAST_TRIALS} pairs of texts of one author and of two in either half"
            skipped.append(Skipped(attack="authors", reason=reason))
        return found

    def attack_models(
        self, file: PrivatizedFile, skipped: list[Skipped]
    ) -> tuple[Membership | None, tuple[Canary, ...]]:
        """Return what heads tell that are tuned on such codes."""
        labels = [record.label for record in file.records]
        reason = None
        if file.manifest.labels is None or None in labels:
            reason = "the file has no labels"
        elif self.quick:
            reason = "the audit was to be quick"
        else:
            reason = explain_missing_torch()
        chosen = self.rng.permutation(len(labels))[:_MOST_MEMBERS]
        own = np.array([labels[place] or 0 for place in chosen], dtype=np.int64)
        if reason is None and np.sum(np.bincount(own) // 2) < _LEAST_PAIRS:
            reason = f"there must be {_LEAST_PAIRS} pairs of texts with one label"
        if reason is not None:
            skipped.append(Skipped(attack="tuned heads", reason=reason))
            return None, ()
        from rapt.audit.codes.models import CrowdInClear, find_canary, play_membership

        codes = self.mechanism.bundle.codes
        clear = split_into_units(self.codes[chosen], codes_of_a_text=codes)
        crowd = CrowdInClear(
            codes=clear.reshape(len(chosen), -1) / codes,
            labels=own,
            classes=len(file.manifest.labels or ()),
            release=lambda those: (
                see_codes(self.mechanism, self.mechanism.privatize(those, rng=self.rng))[:, :-1] / codes
            ),
            label_privacy=file.manifest.label_privacy,
            epsilon=self.mechanism.epsilon,
        )
        return play_membership(crowd, seed=self.seed), find_canary(crowd, seed=self.seed)

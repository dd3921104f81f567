"""Files of clear text that a tuned model answers at home, alone or beside counts of the user's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapt.at_home import HomeModel, answer_in_parts
from rapt.errors import UsageError
from rapt.local.client.objects import Prediction
from rapt.local.corpus import LabelledText, read_corpus
from rapt.local.own_model import Fusion, fit_fusion
from rapt.local.policy.policy import Policy
from rapt.local.predictions import FilePredictions, Row, check_beside, check_output, make_rows, write_rows
from rapt.narration import SILENT, Narrator
from rapt.wire.adapter_files import AdapterCard


def predict_at_home(
    source: Path,
    model: HomeModel,
    *,
    text_column: str = "text",
    second_column: str | None = None,
    label_column: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    beside: Sequence[Mapping[str, Any]] | None = None,
    on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
    narrator: Narrator = SILENT,
    policy: Policy | None = None,
) -> FilePredictions:
    """Answer the clear texts of a file. Nothing is sent, and nothing is written but the output.

    Args:
        source: CSV, TSV, JSONL, Parquet or a saved dataset, one text a record.
        model: Tuned model, loaded here.
        text_column: Column of the text.
        second_column: Column of the second text of a pair; None for single texts.
        label_column: Column of true labels, which answers are compared with; None compares nothing.
        out: Output, `.jsonl` or `.csv`; None writes no file.
        overwrite: Whether an output that exists is replaced.
        beside: Values that stand before each prediction, such as ids of the texts.
        on_rows: Called with the rows of each batch.
        narrator: Receiver of remarks and progress.
        policy: Policy that the texts are rewritten by; that of the training texts, if they had one.

    Raises:
        CorpusError: The file cannot be read, or a text cannot be answered.
        UsageError: The output must not be written, the model knows pairs and got single texts or the reverse, or a
            label is none of the model's.
    """
    if out is not None:
        check_output(out, queries=source, overwrite=overwrite)
    card = model.card
    records, seconds = _read_queries(source, card, text_column, second_column, label_column, policy)
    check_beside(beside, records=len(records))
    found: list[Row] = []
    right = 0
    with narrator.meter("predicting", total=len(records), unit="texts") as show_progress:
        for odds in answer_in_parts(model, [item.text for item in records], seconds):
            first = len(found)
            rows = make_rows([_to_prediction(line, card.labels) for line in odds], card.labels, beside, first=first)
            asked = records[first : first + len(rows)]
            right += sum(row["label"] == item.label for row, item in zip(rows, asked, strict=True))
            found += rows
            if out is None:
                on_rows(rows)
            show_progress(len(found))
    if out is not None:
        write_rows(out, found, overwrite=overwrite)
    return FilePredictions(labels=card.labels, rows=tuple(found), right=None if label_column is None else right)


@dataclass(frozen=True, eq=False, kw_only=True)
class FusedModel:
    """A tuned model fused with counts of the user's own words.

    Attributes:
        model: Tuned model, loaded here.
        fusion: The words, and how much either is believed.
    """

    model: HomeModel
    fusion: Fusion

    @property
    def card(self) -> AdapterCard:
        """Card of the adapter."""
        return self.model.card

    def answer(
        self, texts: Sequence[str], seconds: Sequence[str] | None, *, first_position: int
    ) -> NDArray[np.float64]:
        """Return the probability of each class for each text, or pair, (n, C)."""
        odds = self.model.answer(texts, seconds, first_position=first_position)
        return self.fusion.fuse(odds, join_pairs(texts, seconds))


def fuse_with_own_texts(
    model: HomeModel,
    own: Path,
    *,
    text_column: str = "text",
    second_column: str | None = None,
    label_column: str,
    policy: Policy | None = None,
) -> FusedModel:
    """Return a tuned model that also counts the words of labelled texts of the user's own. Nothing leaves.

    Args:
        model: Tuned model, loaded here.
        own: Labelled texts in clear, which are not those that are to be answered.
        text_column: Column of the text.
        second_column: Column of the second text of a pair; None for single texts.
        label_column: Column of the label.
        policy: Policy that the texts are rewritten by; that of the training texts, if they had one.

    Raises:
        CorpusError: The file cannot be read.
        UsageError: There are too few texts, or a label is none of the model's.
    """
    records, seconds = _read_queries(own, model.card, text_column, second_column, label_column, policy)
    texts = [record.text for record in records]
    places = {name: place for place, name in enumerate(model.card.labels)}
    labels = np.array([places[str(record.label)] for record in records], dtype=np.int64)
    odds = np.concatenate(list(answer_in_parts(model, texts, seconds)))
    return FusedModel(model=model, fusion=fit_fusion(join_pairs(texts, seconds), labels, odds))


def join_pairs(texts: Sequence[str], seconds: Sequence[str] | None) -> list[str]:
    """Return what is counted of each record: its text, or both of a pair in two lines."""
    return list(texts) if seconds is None else [f"{one}\n{two}" for one, two in zip(texts, seconds, strict=True)]


def _read_queries(
    source: Path,
    card: AdapterCard,
    text_column: str,
    second_column: str | None,
    label_column: str | None,
    policy: Policy | None,
) -> tuple[list[LabelledText], list[str] | None]:
    """The records of a file, and their second texts, checked against what the model knows."""
    pairs = card.pairs or card.mechanism.texts > 1
    if pairs != (second_column is not None):
        wanted = "two texts, with `second_column`" if pairs else "one text, without `second_column`"
        raise UsageError(f"a query must have {wanted}, as the training text had")
    records = list(read_corpus(source, text_column=text_column, label_column=label_column, policy=policy))
    seconds = None
    if second_column is not None:
        others = read_corpus(source, text_column=second_column, label_column=None, policy=policy)
        seconds = [item.text for item in others]
    unknown = {item.label for item in records if item.label is not None}.difference(card.labels)
    if unknown:
        raise UsageError(
            f"labels of queries must be among the {len(card.labels)} labels of the model, got {len(unknown)} others; "
            "leave out `label_column`, or correct them"
        )
    return records, seconds


def _to_prediction(odds: NDArray[np.float64], labels: Sequence[str]) -> Prediction:
    best = int(odds.argmax())
    return Prediction(label=labels[best], label_index=best, probabilities=tuple(odds.tolist()))

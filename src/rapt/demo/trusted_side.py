"""The trusted side: the texts, the privatized files made from them, and what may be said about both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapt.demo.data import CLASSES, Tweets, pick_tweets, write_csv
from rapt.demo.narrator import Narrator
from rapt.demo.plan import DemoPlan
from rapt.local.corpus import privatize_corpus
from rapt.local.guarantee import PrivacyStatement, privacy_statement
from rapt.local.mechanisms import make_mechanism
from rapt.local.plain_tokens import plan_plain_tokens
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.wire.privatized_file import PrivatizedFile, read_privatized_file

# Sentences that are shown fit on a line of a terminal.
_SHORT: Final = 90


@dataclass(frozen=True, kw_only=True)
class TrustedSide:
    """Everything that stays, and the two files that may leave.

    Attributes:
        vocabulary: Of the backbone.
        training: Private texts and their labels.
        queries: Private texts and their true labels, which are never sent.
        training_path: Privatized, with labels.
        query_path: Privatized, without labels.
        statement: What the setting promises.
    """

    vocabulary: Vocabulary
    training: Tweets
    queries: Tweets
    training_path: Path
    query_path: Path
    statement: PrivacyStatement

    def privatized_training(self) -> PrivatizedFile:
        """The privatized training file, in memory."""
        return read_privatized_file(self.training_path)

    def privatized_queries(self) -> PrivatizedFile:
        """The privatized queries, in memory."""
        return read_privatized_file(self.query_path)

    def before_and_after(self, count: int) -> Iterator[tuple[str, str]]:
        """The first short training texts, and what became of each."""
        records = self.privatized_training().records
        for text, record in zip(self.training.texts, records, strict=True):
            if count and len(text) <= _SHORT:
                yield text, self.vocabulary.decode(record.token_ids)
                count -= 1

    def unchanged(self) -> float:
        """Share of the training texts' tokens that the mechanism happened to leave as they were."""
        same, total = 0, 0
        contents = self.vocabulary.encode(self.training.texts)
        for content, record in zip(contents, self.privatized_training().records, strict=True):
            same += sum(a == b for a, b in zip(content, record.token_ids, strict=True))
            total += len(content)
        return same / total


def prepare_trusted_side(plan: DemoPlan, folder: Path, *, narrator: Narrator) -> TrustedSide:
    """Pick the texts, write them into the trusted folder, and privatize both files there.

    Args:
        plan: Sizes and setting.
        folder: Trusted; made here.
        narrator: Takes the progress.

    Raises:
        CorpusError: The demo's texts are not installed.
        VocabularyError: The model's files are not installed.
    """
    folder.mkdir(parents=True)
    training, queries = pick_tweets(training=plan.training, queries=plan.queries)
    write_csv(training, folder / "train.csv")
    write_csv(queries, folder / "queries.csv")
    vocabulary, stream = load_vocabulary(plan.model), secure_stream()
    privatizer = Privatizer(
        vocabulary=vocabulary,
        mechanism=make_mechanism("laplace", vocabulary=vocabulary, eta=plan.eta),
        plain_tokens=plan_plain_tokens(
            vocabulary,
            count=plan.plain_tokens,
            pool_size=plan.plain_token_pool,
            drawn=plan.plain_tokens_drawn,
            rng=stream.generator,
        ),
    )
    for name, tweets, labels in (("train", training, CLASSES), ("queries", queries, None)):
        with narrator.meter(f"privatizing {name}.csv", total=len(tweets), unit="texts") as show:
            manifest = privatize_corpus(
                folder / f"{name}.csv",
                folder / f"{name}.rapt.jsonl",
                privatizer=privatizer,
                label_column=None if labels is None else "label",
                labels=labels,
                stream=stream,
                on_progress=lambda records, tokens: show(records, note=f"{tokens:,} tokens"),
            )
    return TrustedSide(
        vocabulary=vocabulary,
        training=training,
        queries=queries,
        training_path=folder / "train.rapt.jsonl",
        query_path=folder / "queries.rapt.jsonl",
        statement=privacy_statement(
            vocabulary,
            manifest.mechanism,
            plain_tokens=manifest.plain_tokens,
            labels_sent=True,
            randomness=manifest.randomness,
        ),
    )

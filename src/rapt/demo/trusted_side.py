"""The trusted side: the texts, the privatized files made from them, and what may be said about both.

The upper bound: the same tuning on the same texts without privatization, inside the trusted process.

The service never sees these tokens. They take the shape of a privatized file in memory only, because that is what the
tuner reads; nothing of it is written or sent, and a manifest that names no mechanism is refused everywhere else.

What the trusted side computes while the service works: the upper bound, and the attacks on its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from rapt.audit.attacks import ATTACKS, LINKAGE
from rapt.audit.audit import AuditReport, audit_view
from rapt.audit.truth import match_truth, sample_records
from rapt.audit.view import adversary_view, public_text
from rapt.demo.data import CLASSES, Tweets, pick_public_tweets, pick_tweets, write_csv
from rapt.demo.plan import DemoPlan
from rapt.local.corpus import privatize_corpus
from rapt.local.deniability import measure_unchanged
from rapt.local.guarantee import PrivacyStatement, state_privacy
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.narration import Narrator
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuner import Progress, TuningConfig, tune
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, read_privatized_file

# Sentences that are shown fit on a line of a terminal.
_SHORT: Final = 90


@dataclass(frozen=True, kw_only=True)
class TrustedSide:
    """Everything that stays, and the two files that may leave.

    Attributes:
        vocabulary: Vocabulary of the backbone.
        training: Private texts and their labels.
        queries: Private texts and their true labels, which are never sent.
        training_path: Privatized, with labels.
        query_path: Privatized, without labels.
        statement: Privacy statement of the setting.
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
        statement=state_privacy(
            vocabulary,
            manifest.mechanism,
            plain_tokens=manifest.plain_tokens,
            labels_sent=True,
            randomness=manifest.randomness,
            unchanged=measure_unchanged(privatizer.mechanism, vocabulary, rng=stream.generator),
        ),
    )


def predict_in_clear(
    training: tuple[Sequence[str], Sequence[int]],
    queries: Sequence[str],
    *,
    vocabulary: Vocabulary,
    labels: tuple[str, ...],
    config: TuningConfig,
    threads: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[int]:
    """Label indices predicted for clear queries by a model tuned on clear texts.

    Args:
        training: Texts and label indices, in clear.
        queries: Texts in clear.
        vocabulary: Vocabulary of the backbone; its model name says which.
        labels: Names of the classes.
        config: Without reconstruction: nothing is there to be reconstructed.
        threads: Threads of torch in this process; the service has its own.
        on_progress: Called after each step.
        should_stop: Asked before each step.

    Raises:
        TuningCancelled: `should_stop` said yes.
    """
    torch.set_num_threads(threads)
    backbone = load_backbone(vocabulary.model)
    texts, truth = training
    records = tuple(
        PrivatizedRecord(token_ids=tuple(ids), label=label)
        for ids, label in zip(vocabulary.encode(list(texts)), truth, strict=True)
    )
    manifest = Manifest(
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        mechanism=MechanismSetting(name="none", parameters={}),
        randomness=Randomness(source="none: in clear, in memory only"),
        plain_tokens=NO_PLAIN_TOKENS,
        labels=labels,
        records=len(records),
        tokens=sum(len(record.token_ids) for record in records),
        records_sha256="",
        created_by="rapt demo",
    )
    adapter = tune(
        backbone,
        PrivatizedFile(manifest=manifest, records=records),
        config=config,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    rows = [ClassificationRow(adapter=adapter, token_ids=tuple(ids)) for ids in vocabulary.encode(list(queries))]
    return [max(range(len(labels)), key=answer.__getitem__) for answer in classify(backbone, rows)]


def upper_bound(
    plan: DemoPlan,
    side: TrustedSide,
    *,
    threads: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[str]:
    """Labels of the queries, predicted in clear by a model tuned in clear."""
    predicted = predict_in_clear(
        (side.training.texts, [CLASSES.index(label) for label in side.training.labels]),
        side.queries.texts,
        vocabulary=side.vocabulary,
        labels=CLASSES,
        config=TuningConfig(prompt_length=plan.prompt_length, epochs=plan.epochs, seed=plan.seed),
        threads=threads,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    return [CLASSES[index] for index in predicted]


def attack_own_file(plan: DemoPlan, side: TrustedSide, *, on_progress: Callable[[str, float], None]) -> AuditReport:
    """Recover of the training texts what a curious service can, with public tweets to learn the language from.

    The attacks that train a network are left to `rapt audit`: they take longer than the rest of the demo.
    """
    texts = pick_public_tweets(apart_from=[*side.training.texts, *side.queries.texts], most=plan.public_texts)
    bundle = side.vocabulary.bundle
    public = public_text(texts, bundle, source=f"{len(texts):,} other tweets")
    view = adversary_view(side.privatized_training(), bundle, public=public)
    truth = match_truth(view, side.vocabulary.encode(side.training.texts))
    view, truth = sample_records(view, truth, tokens=plan.attacked_tokens, seed=plan.seed)
    fast = [*(name for name, attack in ATTACKS.items() if attack.fast), LINKAGE]
    return audit_view(view, truth, attacks=fast, seed=plan.seed, on_progress=on_progress)

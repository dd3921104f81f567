"""The upper bound: the same tuning on the same texts without privatization, inside the trusted process.

The service never sees these tokens. They take the shape of a privatized file in memory only, because that is what the
tuner reads; nothing of it is written or sent, and a manifest that names no mechanism is refused everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rapt.local.vocabulary import Vocabulary
from rapt.service.model.backbone import load_backbone
from rapt.service.model.inference import ClassificationRow, classify
from rapt.service.model.tuner import Progress, TuningConfig, tune
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, MechanismSetting, Randomness
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord


def clean_predictions(
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
        queries: In clear.
        vocabulary: Of the backbone; its model name says which.
        labels: Names of the classes.
        config: Without reconstruction: nothing is there to be reconstructed.
        threads: Of torch in this process; the service has its own.
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

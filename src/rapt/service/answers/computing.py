"""What answers for loaded models: their queues of predictions, and the writers of those that write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from rapt.service.answers.batching import BatchLimits
from rapt.service.answers.prediction import Predictor
from rapt.service.answers.writing import Writer
from rapt.service.backbone.backbone import Backbone


@contextmanager
def compute_answers(
    backbones: Mapping[str, Backbone], *, limits: BatchLimits
) -> Iterator[tuple[dict[str, Predictor], dict[str, Writer]]]:
    """The predictors and writers of backbones by name, whose threads compute until the end of the block."""
    with ExitStack() as closing:
        predictors: dict[str, Predictor] = {}
        writers: dict[str, Writer] = {}
        readers: dict[int, Predictor] = {}  # by the encoder that they share with a model of tokens
        for name, backbone in sorted(backbones.items(), key=lambda item: item[1].reader is None):
            beside = readers.get(id(backbone.encoder)) if backbone.reader is None else None
            predictors[name] = Predictor(backbone, limits=limits, beside=beside)
            if backbone.reader is not None:
                readers.setdefault(id(backbone.encoder), predictors[name])
            closing.callback(predictors[name].close)
            if backbone.kind != "encoder":
                writers[name] = Writer(backbone, limits=limits)
                closing.callback(writers[name].close)
        yield predictors, writers

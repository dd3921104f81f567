"""What an adapter answers, as an attacker reads it: the confidence in a label, scaled so that it is close to normal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.inference import ClassificationRow, classify

_LEAST = 1e-30


def confidences(
    backbone: Backbone,
    adapter: Adapter,
    contents: Sequence[tuple[int, ...]],
    *,
    plain: Sequence[tuple[int, ...]] | None = None,
) -> NDArray[np.float64]:
    """log(p / (1 - p)) for the probability p of each class, (n, C).

    1 - p is summed over the other classes: where p is nearly 1, a difference would have lost it.

    Args:
        backbone: That the adapter was tuned on.
        adapter: Asked.
        contents: Token ids of each text, as they are sent.
        plain: The privatized plain tokens before each, for an adapter that was tuned with some.
    """
    before = [()] * len(contents) if plain is None else plain
    rows = [
        ClassificationRow(adapter=adapter, token_ids=content, privatized_plain_tokens=tokens)
        for content, tokens in zip(contents, before, strict=True)
    ]
    answers = np.array(classify(backbone, rows), dtype=np.float64)
    classes = answers.shape[1]
    others = answers @ (1 - np.eye(classes))
    scaled: NDArray[np.float64] = np.log(np.maximum(answers, _LEAST)) - np.log(np.maximum(others, _LEAST))
    return scaled


def of_labels(found: NDArray[np.float64], labels: Sequence[int]) -> NDArray[np.float64]:
    """The confidence in the label of each text, (n,)."""
    chosen: NDArray[np.float64] = found[np.arange(len(found)), np.asarray(labels, dtype=np.int64)]
    return chosen

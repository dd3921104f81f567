"""The parts of an audit that a command puts together: what is read, what is inferred, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rapt.cli.output import Meter, meter, say

if TYPE_CHECKING:
    from rapt.audit.attributes import AttributeResult
    from rapt.audit.view import AdversaryView, Truth
    from rapt.local.record_parts import PartColumns
    from rapt.local.vocabulary import Vocabulary
    from rapt.wire.manifest import Manifest

# Time of the bound, in the unit of `Attack.weight`.
_BOUND_WEIGHT: Final = 40.0


def read_column(original: Path, column: str, *, text_column: str) -> list[str]:
    """A column of the corpus, in its order; an empty value counts as a value."""
    from rapt.local.corpus import read_corpus

    records = read_corpus(original, text_column=text_column, label_column=column)
    return [str(record.label) for record in records]


def count_entities(
    view: AdversaryView,
    truth: Truth,
    original: Path,
    *,
    text_column: str,
    other_texts: PartColumns,
    truncate_to: int | None,
) -> Truth:
    """The truth with its named entities, or as it is where they cannot be looked for, which is said."""
    from rapt.audit.judge.entities import reason_without_entities, with_entities
    from rapt.audit.matching import read_others
    from rapt.local.corpus import read_corpus

    if (reason := reason_without_entities()) is not None:
        say(reason)
        return truth
    texts = [record.text for record in read_corpus(original, text_column=text_column, label_column=None)]
    with meter("finding entities", total=100, unit="%") as progress:
        return with_entities(
            view,
            truth,
            texts,
            others=read_others(original, other_texts),
            truncate_to=truncate_to,
            on_progress=lambda share: progress(int(100 * share)),
        )


def infer_columns(
    view: AdversaryView, truth: Truth, columns_to_infer: list[tuple[str, list[str]]], *, seed: int
) -> tuple[AttributeResult, ...]:
    """Every column that was named, inferred from the whole file."""
    from rapt.audit.attributes import infer_attribute

    found = []
    for column, values in columns_to_infer:
        with meter(f"inferring {column}", total=100, unit="%") as progress:
            shown = stages(progress, [column])
            result = infer_attribute(view, truth, values, column=column, seed=seed, on_progress=partial(shown, column))
        found.append(result)
    return tuple(found)


def stages(progress: Meter, names: Sequence[str]) -> Callable[[str, float], None]:
    """A receiver of stages that come one after another, shown as one piece of work with the time that is left."""
    from rapt.audit.attacks import ATTACKS

    weights = {name: ATTACKS[name].weight if name in ATTACKS else _BOUND_WEIGHT for name in names}
    begun = time.monotonic()
    before = {name: sum(list(weights.values())[:place]) for place, name in enumerate(weights)}

    def show_stage(stage: str, share: float) -> None:
        done = (before[stage] + share * weights[stage]) / sum(weights.values())
        seconds = time.monotonic() - begun
        left = f", about {_minutes(seconds * (1 - done) / done)} left" if done > 0.02 and seconds > 1 else ""
        progress(int(100 * done), note=stage.replace("_", " ") + left)

    return show_stage


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def statement_text(vocabulary: Vocabulary, manifest: Manifest) -> str:
    """The privacy statement of a file, or nothing for a mechanism without one."""
    from rapt.local.guarantee import PROMISES, privacy_statement

    if manifest.mechanism.name not in PROMISES:
        return ""
    return privacy_statement(
        vocabulary,
        manifest.mechanism,
        plain_tokens=manifest.plain_tokens,
        labels_sent=manifest.labels is not None,
        label_privacy=manifest.label_privacy,
        two_texts=manifest.pairs,
        targets=manifest.targets,
        randomness=manifest.randomness,
    ).to_text()

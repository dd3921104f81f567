"""What the trusted side computes while the service works: the upper bound, and the attacks on its own file."""

from __future__ import annotations

from collections.abc import Callable

from rapt.audit.attacks import ATTACKS
from rapt.audit.audit import AuditReport, audit
from rapt.audit.matching import match_truth
from rapt.audit.portions import sample_records
from rapt.audit.priors import public_text
from rapt.audit.view import adversary_view
from rapt.demo.clean_arm import clean_predictions
from rapt.demo.data import CLASSES, public_tweets
from rapt.demo.plan import DemoPlan
from rapt.demo.trusted_side import TrustedSide
from rapt.service.model.tuner import Progress, TuningConfig


def upper_bound(
    plan: DemoPlan,
    side: TrustedSide,
    *,
    threads: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[str]:
    """Labels of the queries, predicted in clear by a model tuned in clear."""
    predicted = clean_predictions(
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
    """What a curious service can recover of the training texts, with public tweets to learn the language from.

    The attacks that train a network are left to `rapt audit`: they take longer than the rest of the demo.
    """
    texts = public_tweets(apart_from=[*side.training.texts, *side.queries.texts], most=plan.public_texts)
    bundle = side.vocabulary.bundle
    public = public_text(texts, bundle, source=f"{len(texts):,} other tweets")
    view = adversary_view(side.privatized_training(), bundle, public=public)
    truth = match_truth(view, side.vocabulary.encode(side.training.texts))
    view, truth = sample_records(view, truth, tokens=plan.attacked_tokens, seed=plan.seed)
    fast = [name for name, attack in ATTACKS.items() if attack.fast]
    return audit(view, truth, attacks=fast, seed=plan.seed, on_progress=on_progress)

"""The game of membership: every model is attacked once, by an attacker who has all the others as his shadow models.

That uses N tunings for N attacked models (Carlini et al. 2022, Section VI-A). Texts are asked about in clear, or, as a
user of a model that was tuned on privatized text would ask, in a fresh privatization; several answers are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapt.audit.artefact.confidence import confidences, of_labels
from rapt.audit.artefact.membership import MEMBERSHIP_ATTACKS
from rapt.audit.artefact.membership_view import views_of_each
from rapt.audit.artefact.models import Models, Workshop
from rapt.audit.artefact.scores import MembershipScore, score_membership
from rapt.audit.artefact.texts import TokenTexts, privatize, release_plain_tokens
from rapt.service.model.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class NamedScore:
    """An attack's name in `MEMBERSHIP_ATTACKS`, and its success."""

    attack: str
    score: MembershipScore


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """Membership inference in one setting.

    Attributes:
        tuned_on: `clear` or `privatized` text.
        asked_with: The same of the queries.
        texts: Asked about.
        shadows: Shadow models of each attacker.
        attacks: In the order of `MEMBERSHIP_ATTACKS`.
    """

    tuned_on: str
    asked_with: str
    texts: int
    shadows: int
    attacks: tuple[NamedScore, ...]

    @property
    def strongest(self) -> NamedScore:
        """The attack of largest AUC."""
        return max(self.attacks, key=lambda found: found.score.auc.value)


def ask(
    workshop: Workshop,
    adapters: Sequence[Adapter],
    texts: TokenTexts,
    *,
    privatized: bool,
    queries: int,
    seed: int,
) -> NDArray[np.float64]:
    """The confidence of each model in each text's label, (N, n).

    Args:
        workshop: That tuned the models, or would have.
        adapters: Asked, N of them.
        texts: Asked about.
        privatized: Whether texts are asked about in fresh privatizations.
        queries: Privatizations of each text, averaged.
        seed: Of the noise; every model gets the same queries.
    """
    rng, mechanism = np.random.default_rng([seed, 9]), workshop.mechanism
    asked = []
    for _ in range(queries if privatized and mechanism is not None else 1):
        contents = texts.contents
        if privatized and mechanism is not None:
            contents = privatize(contents, mechanism=mechanism, rng=rng)
        before = release_plain_tokens(workshop.plain_tokens, len(texts), mechanism=mechanism, rng=rng)
        asked.append((contents, [released for _, released in before]))
    return np.stack(
        [
            np.mean(
                [
                    of_labels(confidences(workshop.backbone, adapter, contents, plain=plain), texts.labels)
                    for contents, plain in asked
                ],
                axis=0,
            )
            for adapter in adapters
        ]
    )


def attack_each(answers: NDArray[np.float64], members: NDArray[np.bool_], *, seed: int) -> tuple[NamedScore, ...]:
    """Every attack on every model, the others being the attacker's own.

    Args:
        answers: Confidences of all models, (N, n).
        members: What each was tuned on, (N, n); of the attacked model only the score reads it.
        seed: Of the intervals.
    """
    views = list(views_of_each(answers, members))
    return tuple(
        NamedScore(attack=name, score=score_membership(np.stack([attack(view) for view in views]), members, seed=seed))
        for name, attack in MEMBERSHIP_ATTACKS.items()
    )


def play_membership(
    workshop: Workshop, models: Models, texts: TokenTexts, *, privatized: bool, queries: int = 4, seed: int = 0
) -> MembershipResult:
    """The game on models that were tuned already; see `ask` for the arguments."""
    privatized = privatized and workshop.mechanism is not None
    answers = ask(workshop, models.adapters, texts, privatized=privatized, queries=queries, seed=seed)
    return MembershipResult(
        tuned_on=workshop.tuned_on,
        asked_with="privatized" if privatized else "clear",
        texts=len(texts),
        shadows=len(models.adapters) - 1,
        attacks=attack_each(answers, models.members, seed=seed),
    )

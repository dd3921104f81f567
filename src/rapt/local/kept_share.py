"""How much of the user's own text would stay as it is: one sentence, a warning, and a refusal before the first draw.

A setting can be formally private and protect nothing: at η = 1000 every word stays. What counts is the text at hand, in
which topic words are more frequent, and stay oftener, than in running public text. So both shares are measured, on this
machine, with draws that are thrown away. The share of the user's text depends on it, so it stays here: it is printed
and written into the receipt, and not into the manifest. The other one follows from the setting, and anybody can compute
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rapt.errors import MechanismError
from rapt.local.deniability import UnchangedShare, measure_unchanged
from rapt.local.mechanisms import Mechanism, remake_mechanism
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer, TextPrivatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import weigh_own_tokens

# Shares from which a person is warned, and from which a release is refused unless it is insisted on.
MUCH: Final = 0.6
NEARLY_ALL: Final = 0.9
# Tokens drawn for each share: an interval of at most ± 2.2 points, in a fifth of a second with MiniLM's table.
_DRAWS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class KeptShares:
    """Shares of tokens that stay as they are.

    Attributes:
        eta: η of the setting.
        running: Share over running public text.
        own: Share over the texts that are to be privatized; private.
    """

    eta: float
    running: UnchangedShare
    own: UnchangedShare

    @property
    def largest(self) -> float:
        """The larger of both shares."""
        return max(self.running.share, self.own.share)

    @property
    def is_much(self) -> bool:
        """Whether so much stays that a person is warned before anything is drawn."""
        return self.largest >= MUCH

    @property
    def sentence(self) -> str:
        """What stays, in one sentence; a warning where that is much."""
        said = (
            f"{100 * self.own.share:.0f} % of the tokens of these texts stay as they are at eta={self.eta:g} "
            f"({100 * self.running.share:.0f} % of running public text)"
        )
        return f"warning: {said}; rapt preview says which" if self.is_much else said

    def to_json(self) -> dict[str, Any]:
        """Both shares, for the user alone."""
        return {"running_text": self.running.share, "own_texts": self.own.share}


def check_kept_shares(
    privatizer: TextPrivatizer, counts: Mapping[int, int], *, rng: np.random.Generator, insist: str | None
) -> KeptShares | None:
    """Measure how much stays of running public text, and of texts whose tokens come so often; None of whole texts.

    Args:
        privatizer: Setting of the release.
        counts: Number of times that each token comes in the texts, with one token at least.
        rng: Source of draws that are thrown away; never that of a release.
        insist: How the user says that a weak setting is meant, such as an option; None where that was said.

    Raises:
        MechanismError: Nine of ten tokens or more stay, and nobody insists.
    """
    privatizer, strengths = _take_off_policy(privatizer)
    if not isinstance(privatizer, Privatizer):
        return None
    mechanism, vocabulary = privatizer.mechanism, privatizer.vocabulary
    kept = KeptShares(
        eta=mechanism.setting.eta,
        running=measure_unchanged(mechanism, vocabulary, rng=rng, draws=_DRAWS),
        own=measure_unchanged(mechanism, vocabulary, rng=rng, weighting=weigh_own_tokens(counts), draws=_DRAWS),
    )
    _refuse_weak_kind(mechanism, vocabulary, max(strengths), rng=rng, insist=insist)
    if insist is not None and kept.largest >= NEARLY_ALL:
        own, running = (f"{100 * found.share:.1f} %" for found in (kept.own, kept.running))
        raise MechanismError(
            f"eta must change more than a tenth of the tokens, got eta={kept.eta:g} at which {own} of these texts and "
            f"{running} of running public text stay as they are; see `rapt calibrate`, or insist with {insist}"
        )
    return kept


def check_running_share(privatizer: TextPrivatizer, *, insist: str | None) -> str | None:
    """Say how much stays of running public text, before any text of the user's is there; None of whole texts.

    Args:
        privatizer: Setting of the release.
        insist: How the user says that a weak setting is meant, such as an option; None where that was said.

    Raises:
        MechanismError: Nine of ten tokens or more stay, and nobody insists.
    """
    privatizer, strengths = _take_off_policy(privatizer)
    if not isinstance(privatizer, Privatizer):
        return None
    mechanism, rng = privatizer.mechanism, secure_stream().generator
    _refuse_weak_kind(mechanism, privatizer.vocabulary, max(strengths), rng=rng, insist=insist)
    share = measure_unchanged(mechanism, privatizer.vocabulary, rng=rng, draws=_DRAWS).share
    eta = mechanism.setting.eta
    if insist is not None and share >= NEARLY_ALL:
        raise MechanismError(
            f"eta must change more than a tenth of the tokens, got eta={eta:g} at which {100 * share:.1f} % of running "
            f"public text stay as they are; see `rapt calibrate`, or insist with {insist}"
        )
    said = f"{100 * share:.0f} % of the tokens of running public text stay as they are at eta={eta:g}"
    return f"rapt: warning: {said}; rapt preview says which" if share >= MUCH else said


def _take_off_policy(privatizer: TextPrivatizer) -> tuple[TextPrivatizer, list[float]]:
    """The setting behind a policy, and the η of its kinds; 0 among them."""
    if not isinstance(privatizer, PolicyPrivatizer):
        return privatizer, [0.0]
    rules = privatizer.policy.rules.values()
    return privatizer.inner, [0.0, *(rule.strength or 0.0 for rule in rules if rule.treatment == "eta")]


def _refuse_weak_kind(
    mechanism: Mechanism, vocabulary: Vocabulary, weakest: float, *, rng: np.random.Generator, insist: str | None
) -> None:
    """Refuse an η of a kind, above that of the setting, at which nearly all stays (`MechanismError`)."""
    if insist is None or weakest <= mechanism.setting.eta:
        return
    weak = remake_mechanism(
        replace(mechanism.setting, parameters={**mechanism.setting.parameters, "eta": weakest}),
        vocabulary=vocabulary,
        allow_unproved=True,
    )
    share = measure_unchanged(weak, vocabulary, rng=rng, draws=_DRAWS).share
    if share >= NEARLY_ALL:
        raise MechanismError(
            f"the eta of a kind must change more than a tenth of the tokens, got eta={weakest:g} at which "
            f"{100 * share:.1f} % of running public text stay as they are; take a smaller one, or insist with "
            f"{insist}"
        )

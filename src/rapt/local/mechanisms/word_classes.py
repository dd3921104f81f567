"""Mechanisms that go by word classes: `soft-pos`, which has the class in its metric, and `pct2t`, as published.

PCT2T replaces a word only by words of its class, and so sends the class in clear. It is kept for comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.certificate import Subject
from rapt.local.mechanisms.exponential import CALIBRATED_OPTION, UNIFORM, ScoredMechanism, calibrate_scores
from rapt.local.mechanisms.interface import MechanismKind, MechanismOption, Promise, read_number
from rapt.local.mechanisms.laplace import replace_noisy
from rapt.local.mechanisms.metric import PublicMetric, Scores
from rapt.local.mechanisms.token_tags import TAGS_OPTION, TokenTags
from rapt.local.nearest import NearestToken
from rapt.local.privacy_loss import PrivacyLoss, pure_loss
from rapt.local.text_page import ceil_nats
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, Parameter, check_eta

# Half of MiniLM's distance to the nearest neighbour. At the beta where half of the tokens change it makes another part
# of speech about 30 times less likely, and adds half as much to a bound.
PENALTY: Final = 0.5
METRIC: Final = "euclidean+class"


def make_soft_pos(
    *, vocabulary: Vocabulary, eta: float, tags: TokenTags, penalty: float = PENALTY, calibrated: bool = False
) -> ScoredMechanism:
    """Y with probability proportional to exp(-beta * d'(x, y)), d' the distance plus a penalty for another word class.

    Guarantee (eta * d'-privacy for one token): with d'(x, x') = ||E(x) - E(x')|| + penalty * 1[tag(x) != tag(x')], for
    every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d'(x, x').

    So words of one class are as hard to tell apart as under the Euclidean metric, and words of two classes
    eta * penalty nats easier.

    Proof.
        1. A tag is a property of the token alone, in a public list. 1[tag(x) != tag(y)] is a metric up to tokens of one
           class, and so is the sum d' of it and the Euclidean distance.
        2. With s(x, y) = -beta * d'(x, y): s(x, y) - s(x', y) <= beta * d'(x, x') for every y, by the triangle
           inequality, and so log Z(x') - log Z(x) <= beta * d'(x, x'), term by term.
        3. log P(y|x) - log P(y|x') <= 2 * beta * d'(x, x') = eta * d'(x, x') with beta = eta / 2. ∎
        With `calibrated`, beta is larger and the inequality is checked for all rows and outputs (`certificate`). Draws
        are exact up to 2^-39 nats in the inequality, without a δ (`exact_draws`).

    Not covered: number and order of tokens, labels, repeated releases. The class of a word is protected no more than
    the penalty allows.

    Why not as published: replacing a word only by words of its class (`pct2t`) sends the class in clear, and a tagger
    that reads the sentence makes it depend on the other words as well.

    Source: ours, after PCT2T of RAPT v2 (arXiv 2305.06212v2) and Arnold, Yesilbas, Weinzierl, "Guiding Text-to-Text
    Privatization by Syntax", TrustNLP 2023. Status: proved.
    """
    if not 0 <= penalty <= 1e6:
        raise MechanismError(f"penalty must be a distance from 0 to 1e6, got penalty={penalty!r}")
    metric = PublicMetric(embeddings=vocabulary.embeddings, tags=tags.classes, penalty=penalty)
    scores = Scores(metric=metric, eligible=vocabulary.eligible, beta=check_eta(eta) / 2)
    certificate = None
    if calibrated:
        subject = Subject(vocabulary.hash, f"{METRIC} {penalty!r} {tags.source}", UNIFORM, float(eta))
        scores, certificate = calibrate_scores(scores, subject=subject)
    parameters: dict[str, Parameter] = {
        "eta": float(eta),
        "beta": scores.beta,
        "calibrated": calibrated,
        "metric": METRIC,
        "penalty": penalty,
        "tags": tags.source,
    }
    setting = MechanismSetting(name="soft-pos", parameters=parameters)
    return ScoredMechanism(setting=setting, scores=scores, certificate=certificate)


def _make_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    # The two tokens may be of different classes, at any distance.
    penalty = read_number(setting, "penalty", at_most=math.inf)
    return pure_loss(epsilon=setting.eta * (distance + penalty), step=step)


def _remark(setting: MechanismSetting) -> str:
    nats = setting.eta * read_number(setting, "penalty", at_most=math.inf)
    return (
        f"classes: every bound here allows the two tokens to be of different word classes, which adds "
        f"{ceil_nats(nats)} to ε; for two of one class it is so much lower."
    )


SOFT_POS: Final = MechanismKind(
    name="soft-pos",
    build=make_soft_pos,
    promise=Promise(loss=_make_loss, pure_only=True, remark=_remark),
    options={
        "penalty": MechanismOption(default=PENALTY, help="distance between words of different classes, at least 0"),
        "tags": TAGS_OPTION,
        "calibrated": CALIBRATED_OPTION,
    },
)


PCT2T_METRIC: Final = "euclidean within a class, infinite across"
_BATCH: Final = 512


@dataclass(frozen=True, kw_only=True)
class Pct2tMechanism:
    """y = nearest eligible token *of the class of x* to E(x) + z, with the noise of `laplace`.

    Guarantee, for tokens of one class only: for every y, and every x and x' with tag(x) = tag(x'),

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    For x and x' of different classes there is **none**: an output of the class of x cannot come from x', so the log of
    the ratio is infinite. The sequence of the classes of a text is sent in clear.

    Proof.
        1. Within a class, the candidates are a fixed public set, and the proof of `laplace` holds with it in place of
           the eligible tokens.
        2. Across classes: P(y|x) > 0 for every eligible y of the class of x, while P(y|x') = 0 for it. ∎
        Tokens of a class without eligible tokens (special ones) take any eligible token, and count as a class.

    Not covered: the class of every token; all that `laplace` does not cover. As published the tag may come from a
    tagger that reads the sentence; then the candidates also depend on the other words, and even the statement within a
    class needs "given the tags". Here the tag belongs to the token alone.

    What to use instead: `soft-pos`, which has the class in its metric and a finite bound for every pair.

    Source: PCT2T in RAPT v2 (arXiv 2305.06212v2), by its description; the same idea in Arnold, Yesilbas, Weinzierl,
    "Guiding Text-to-Text Privatization by Syntax", TrustNLP 2023. Status: broken-as-published.
    """

    vocabulary: Vocabulary
    eta: float
    tags: TokenTags

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, the metric and where the tags come from."""
        parameters: dict[str, Parameter] = {"eta": float(self.eta), "metric": PCT2T_METRIC, "tags": self.tags.source}
        return MechanismSetting(name="pct2t", parameters=parameters)

    @cached_property
    def _searches(self) -> dict[int, NearestToken]:
        """A search for each class, among its eligible tokens, or among all where it has none."""
        embeddings, eligible = self.vocabulary.embeddings, self.vocabulary.eligible
        found = {}
        for tag in range(len(self.tags.names)):
            own = eligible[self.tags.classes[eligible] == tag]
            found[tag] = NearestToken(embeddings, own if len(own) else eligible)
        return found

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows of one class, infinite for others, (n,)."""
        found = PublicMetric(embeddings=self.vocabulary.embeddings).pairs(left, right)
        found[self.tags.classes[left] != self.tags.classes[right]] = np.inf
        return found

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return replace_noisy(self.vocabulary, token_ids, eta=self.eta, rng=rng, at_once=_BATCH, choose=self._choose)

    def _choose(self, noisy: NDArray[np.float64], token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        tags, found = self.tags.classes[token_ids], np.empty(len(token_ids), dtype=np.int64)
        for tag in np.unique(tags).tolist():
            places = np.flatnonzero(tags == tag)
            found[places] = self._searches[tag].search(noisy[places])
        return found


PCT2T: Final = MechanismKind(name="pct2t", build=Pct2tMechanism, promise=None, options={"tags": TAGS_OPTION})

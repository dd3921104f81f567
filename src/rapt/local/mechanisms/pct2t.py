"""PCT2T as published: a word is only replaced by words of its part of speech. Kept for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import GuaranteeStatus, Option, check_token_ids, read_options
from rapt.local.mechanisms.laplace import sample_noise
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.mechanisms.token_tags import BUILT_IN, TokenTags, chosen_tags
from rapt.local.nearest import NearestToken
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta

METRIC: Final = "euclidean within a class, infinite across"
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

    name: ClassVar[str] = "pct2t"
    status: ClassVar[GuaranteeStatus] = "broken-as-published"
    caveat: ClassVar[str] = "words of different classes have no outputs in common, so their ε is infinite; use soft-pos"
    options: ClassVar[Mapping[str, Option]] = {
        "tags": Option(default=BUILT_IN, help="JSON file of public word classes; the default are rules for English")
    }
    vocabulary: Vocabulary
    eta: float
    tags: TokenTags

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, cls.options, mechanism=cls.name)
        return cls(vocabulary=vocabulary, eta=eta, tags=chosen_tags(str(chosen["tags"]), vocabulary))

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, the metric and where the tags come from."""
        parameters: dict[str, Parameter] = {"eta": float(self.eta), "metric": METRIC, "tags": self.tags.source}
        return MechanismSetting(name=self.name, parameters=parameters)

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
        check_token_ids(token_ids, size=self.vocabulary.size)
        found = np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(token_ids), _BATCH):
            batch = token_ids[start : start + _BATCH]
            noisy = sample_noise(rng, eta=self.eta, dim=self.vocabulary.dimension, size=len(batch))
            noisy += self.vocabulary.embeddings[batch]
            tags = self.tags.classes[batch]
            for tag in np.unique(tags).tolist():
                places = np.flatnonzero(tags == tag)
                found[start + places] = self._searches[tag].search(noisy[places])
        return found

"""The attacks on words, one a module, in one closed dict, and what every such attack is.

An attack is a function of the attacker's desk: the adversary's view, a seed, and what was worked out from both. It has
no other way in: the truth is not an argument. To add one: a module with such a function, one line here, and the tests
of `tests/audit/attacks`, which run over all of them (succeeds at a huge eta, is at chance at a tiny one, cannot read
the truth, reaches the optimum on a Markov source).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, Literal, Protocol

from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.attacks.direct import (
    contextual,
    embedding_inversion,
    explain_missing_labels,
    guess_by_bayes,
    read_with_labels,
)
from rapt.audit.attacks.learned import (
    classify_candidates,
    learned_denoiser,
    search_with_decoder,
    sweep_with_masked_model,
)
from rapt.audit.view import Guess
from rapt.errors import VocabularyError

Need = Literal["channel", "public", "labels", "torch", "decoder"]


class AttackFunction(Protocol):
    """Names the likeliest true token of every privatized one."""

    def __call__(self, desk: Desk, *, on_progress: Progress | None = None) -> Guess:
        """Candidates for each token of the view; `on_progress` takes the share done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack and what a report says about it.

    Attributes:
        run: Function that runs the attack.
        title: Title for people.
        uses: Work of the attacker, in plain words, one sentence.
        source: Publication of the attack.
        needs: Inputs that it cannot do without.
        uses_context: Whether it looks at the tokens around a token.
        weight: Seconds, very roughly, on 100,000 tokens with MiniLM's table: for progress alone.
        fast: Whether it is part of a quick look.
        default: Whether it runs where nobody names attacks.
        most_tokens: Tokens of the random part, in whole texts, that it attacks of a larger file.
    """

    run: AttackFunction
    title: str
    uses: str
    source: str
    needs: frozenset[Need] = frozenset()
    weight: float
    uses_context: bool = False
    fast: bool = True
    default: bool = True
    most_tokens: int | None = None

    def reason_to_skip(self, desk: Desk) -> str | None:
        """Reason why it cannot run on this file, or None when it can."""
        if "channel" in self.needs and (reason := desk.channel_unknown) is not None:
            return reason
        if "public" in self.needs and desk.view.public is None:
            return "it learns from public text, and none was given"
        if "labels" in self.needs and (reason := explain_missing_labels(desk.view)) is not None:
            return reason
        if "torch" in self.needs and (find_spec("torch") is None or find_spec("transformers") is None):
            return "it needs torch and transformers; run in the checkout: pip install -e '.[service,audit]'"
        if "decoder" in self.needs:
            try:
                desk.decoder(most_tokens=self.most_tokens)
            except VocabularyError as error:
                return str(error)
        return None


ATTACKS: Final[Mapping[str, Attack]] = MappingProxyType(
    {
        "embedding_inversion": Attack(
            run=embedding_inversion,
            title="Embedding inversion",
            uses="Takes each privatized token, and the tokens nearest to it, for the true one.",
            source="Song and Raghunathan 2020; the attack of the RAPT paper",
            weight=5,
        ),
        "bayes": Attack(
            run=guess_by_bayes,
            title="Context-free Bayes",
            uses="Weighs, for each privatized token, how frequent every word is and how often it would turn into it.",
            source="Tong et al. 2025",
            weight=100,
            needs=frozenset({"channel"}),
        ),
        "context": Attack(
            run=contextual,
            title="Channel and context",
            uses="Weighs the same, and how well every word fits to the two words on either side, over the whole text.",
            source="after Kazemi et al. 2025 (BeamClean); sums instead of a beam, the noise known",
            needs=frozenset({"channel", "public"}),
            weight=60,
            uses_context=True,
        ),
        "labels": Attack(
            run=read_with_labels,
            title="Channel, context and label",
            uses="Weighs the same with the words and pairs of words of texts that have the label of the record, "
            "which is sent in clear.",
            source="after Jelinek and Mercer 1980 (mixed language models); ours as an attack",
            needs=frozenset({"channel", "public", "labels"}),
            weight=100,
            uses_context=True,
            fast=False,
        ),
        "masked": Attack(
            run=sweep_with_masked_model,
            title="Masked language model",
            uses="Weighs the same, and how well every word fits to all others of its text, in sweeps over the text.",
            source="after Kazemi et al. 2025 (BeamClean) and Yue et al. 2021 (SanText)",
            needs=frozenset({"channel", "public", "torch"}),
            weight=200,
            uses_context=True,
            fast=False,
        ),
        "denoiser": Attack(
            run=learned_denoiser,
            title="Learned denoiser",
            uses="Corrects the same beliefs by a network that learned from text which the attacker privatized himself.",
            source="after Qu et al. 2021 and SnD 2024",
            needs=frozenset({"channel", "public", "torch"}),
            weight=150,
            uses_context=True,
            fast=False,
        ),
        "tong": Attack(
            run=classify_candidates,
            title="Classifier of candidates",
            uses="Weighs what Bayes weighs, and what a classifier says of each candidate in its place in the text.",
            source="Tong et al. 2025, the attack with context; with a smaller classifier",
            needs=frozenset({"channel", "public", "torch"}),
            weight=200,
            uses_context=True,
            fast=False,
            default=False,
            most_tokens=8_000,
        ),
        "causal": Attack(
            run=search_with_decoder,
            title="Causal language model",
            uses="Weighs channel and context, and how well every word goes on the text in the eyes of a language "
            "model: the one that was named, or the largest on this machine that memory and time allow.",
            source="after Kazemi et al. 2025 (BeamClean); the noise known, shares of readings instead of the best one",
            needs=frozenset({"channel", "public", "torch", "decoder"}),
            weight=600,
            uses_context=True,
            fast=False,
            default=False,
            most_tokens=4_000,
        ),
    }
)

CAUSAL: Final = "causal"
# The attacks that name something else than words; see `rapt.audit.questions`.
LINKAGE: Final = "linkage"
KEYWORDS: Final = "keywords"
REPETITION: Final = "repetition"
# What runs where nobody names attacks: the others are listed as not run.
DEFAULT_ATTACKS: Final = (
    *(name for name, attack in ATTACKS.items() if attack.default),
    *(LINKAGE, KEYWORDS, REPETITION),
)

"""The frequencies of words, fitted to a privatized file by an attacker who has no public text.

The attacker's desk: what the service sees, and what the attacker has already worked out from it.

Attacks share the costly parts: the channel at the tokens that were seen, and the language model of the public text.
All of it follows from an `AdversaryView` and a seed; there is no other way in, so nothing here can hold a truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels import estimate_channel, explain_unknown_channel
from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.language.decoders import ChosenDecoder, choose_decoder
from rapt.audit.language.ngram import NgramModel, fit_ngram
from rapt.audit.view import AdversaryView, PublicText, TokenPrior, make_uniform_prior
from rapt.errors import AuditError
from rapt.local.mechanisms import Mechanism, remake_mechanism
from rapt.local.vocabulary import Vocabulary

# Share of the starting prior that is spread evenly, so that no token is ruled out.
_EVEN_SHARE: Final = 0.1


def fit_prior(
    channel: ChannelEstimate, counts: NDArray[np.int64], *, start: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Frequencies of the true tokens, estimated from the privatized ones by expectation-maximization.

    Each step replaces prior(x) by the mean of P(x|y) over the observed tokens.

    Args:
        channel: Channel at the O observed outputs.
        counts: Occurrences of each observed token, (O,).
        start: Prior to begin with, (V,).
        steps: Number of steps; more of them raise the likelihood, and at some point follow the noise.

    Returns:
        (V,), sum 1.
    """
    prior = start
    for _ in range(steps):
        joint = channel.joint(prior)
        total = joint.sum(axis=1, keepdims=True)
        posterior = joint / np.where(total > 0, total, 1)
        fitted = np.bincount(channel.sources.ravel(), (counts[:, None] * posterior).ravel(), minlength=len(start))
        prior = fitted / fitted.sum()
    return prior


def guess_prior(view: AdversaryView, outputs: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the fit begins: the frequencies of the privatized tokens, and a little for every other."""
    prior = _EVEN_SHARE * make_uniform_prior(view.bundle).probabilities
    prior[outputs] += (1 - _EVEN_SHARE) * counts / counts.sum()
    return prior


Progress = Callable[[float], None]
# Names of what is kept that has a row for each token of the view.
_OF_THE_VIEW: Final = frozenset({"beliefs"})
T = TypeVar("T")

# Sources looked at for each output: four times as many would hold the true token a little more often, at four times the
# cost. The rest is one candidate of its own, "something else".
SOURCES: Final = 23
# Steps of expectation-maximization. More fit the noise, and soon recover less than embedding inversion does.
_FITTING_STEPS: Final = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """The candidates of every token that was seen, the likeliest without context first. n tokens, K candidates.

    Attributes:
        candidates: (n, K + 1); the last column is the id `anything`, for all other tokens together.
        evidence: log P(y | candidate), (n, K + 1), in nats; of the last column log of the sum of prior(x) P(y | x).
        prior: log prior(candidate), (n, K + 1); 0 in the last column.
    """

    candidates: NDArray[np.int64]
    evidence: NDArray[np.float64]
    prior: NDArray[np.float64]


class Desk:
    """An attacker's view and all that he has worked out from it; see the module."""

    def __init__(
        self,
        view: AdversaryView,
        *,
        seed: int,
        channel: ChannelEstimate | None = None,
        language_model: str | ChosenDecoder | None = None,
    ) -> None:
        """Lay out what is known.

        Args:
            view: View of the service.
            seed: Seed of everything that is drawn.
            channel: Channel at the tokens of the view, if it was computed before.
            language_model: Decoder that the attacker asks, as `choose_decoder` takes it; None for the largest at hand.
        """
        self.view = view
        self.seed = seed
        self.language_model = language_model
        self._channel = channel
        self._ngrams: dict[int, NgramModel] = {}
        self._prior: TokenPrior | None = view.prior
        self._kept: dict[str, Any] = {}

    def at(self, view: AdversaryView) -> Desk:
        """The desk of an attack on a part of the records: what was worked out for all of them is there."""
        part = Desk(
            view,
            seed=self.seed,
            channel=self.channel() if self.channel_unknown is None else None,
            language_model=self.language_model,
        )
        part._prior, part._ngrams = self._prior, self._ngrams
        part._kept = {name: kept for name, kept in self._kept.items() if name not in _OF_THE_VIEW}
        return part

    @property
    def channel_unknown(self) -> str | None:
        """Reason why the mechanism's channel is not known, or None."""
        return explain_unknown_channel(self.view.manifest.mechanism, self.view.bundle)

    @property
    def public(self) -> PublicText:
        """The attacker's own texts. Raises `AuditError` where he has none."""
        if self.view.public is None:
            raise AuditError("this attack must have public text to learn from; give some")
        return self.view.public

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` gives, made at the first call of that name and kept for other attacks."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: T = self._kept[name]
        return kept

    def decoder(self, *, most_tokens: int | None = None) -> ChosenDecoder:
        """The decoder that the attacker asks, chosen once.

        Args:
            most_tokens: Number of tokens that it is asked about at most; None for all.

        Raises:
            VocabularyError: The reasons of `choose_decoder`.
        """
        tokens = min(len(self.view.observed), most_tokens or len(self.view.observed))
        return self.once("decoder", lambda: choose_decoder(self.language_model, tokens=tokens))

    def rng(self, what: str) -> np.random.Generator:
        """A generator for one purpose: the same for the same seed, whatever ran before."""
        return np.random.default_rng([self.seed, *what.encode()])

    def vocabulary(self) -> Vocabulary:
        """The public vocabulary of the view."""
        return Vocabulary(self.view.bundle)

    def mechanism(self) -> Mechanism:
        """The mechanism, for attackers who privatize text of their own. Raises `MechanismError`."""
        return remake_mechanism(self.view.manifest.mechanism, vocabulary=self.vocabulary(), allow_unproved=True)

    def channel(self, on_progress: Progress | None = None) -> ChannelEstimate:
        """The channel at every token that was seen. Raises `AuditError` where it is not known."""
        if self._channel is None:
            outputs, counts = np.unique(self.view.observed, return_counts=True)
            start = guess_prior(self.view, outputs, counts) if self._prior is None else self._prior.probabilities
            self._channel = self.channel_at(outputs, prior=start, on_progress=on_progress)
        return self._channel

    def channel_at(
        self, outputs: NDArray[np.int64], *, prior: NDArray[np.float64], on_progress: Progress | None = None
    ) -> ChannelEstimate:
        """The channel at other outputs, sorted, such as those of text that the attacker privatized himself."""
        return estimate_channel(
            self.view.manifest.mechanism,
            self.view.bundle,
            outputs=outputs,
            prior=prior,
            rng=self.rng("channel"),
            sources=SOURCES,
            on_progress=on_progress,
        )

    def prior(self) -> TokenPrior:
        """The public frequencies, or those fitted to the privatized file, which is much weaker."""
        if self._prior is None:
            outputs, counts = np.unique(self.view.observed, return_counts=True)
            fitted = fit_prior(
                self.channel(), counts, start=guess_prior(self.view, outputs, counts), steps=_FITTING_STEPS
            )
            self._prior = TokenPrior(
                probabilities=fitted,
                source="word frequencies: none public was given, so they were fitted to the privatized file, "
                "which is weak",
            )
        return self._prior

    def ngrams(self, *, order: int) -> NgramModel:
        """The n-gram model of the public text."""
        if order not in self._ngrams:
            self._ngrams[order] = fit_ngram(self.public.contents, self.prior(), order=order)
        return self._ngrams[order]

    def lattice(self, *, width: int = SOURCES + 1) -> Lattice:
        """Candidates and evidence for each token of the view, in its order."""
        return build_lattice(self.channel(), self.view.observed, self.prior(), width=width)


def build_lattice(channel: ChannelEstimate, observed: NDArray[np.int64], prior: TokenPrior, *, width: int) -> Lattice:
    """The candidates of these tokens, all of which are outputs of the channel estimate."""
    anything = len(prior.probabilities) + 1
    order = np.argsort(-channel.joint(prior.probabilities), axis=1, kind="stable")
    names = np.take_along_axis(channel.sources, order, axis=1)
    likelihood = np.take_along_axis(channel.mean, order, axis=1)
    kept = min(width, names.shape[1])
    rest = (prior.probabilities[names[:, kept:]] * likelihood[:, kept:]).sum(axis=1)
    rest += 0 if channel.unlisted is None else channel.unlisted
    names = np.column_stack([names[:, :kept], np.full(len(names), anything)])
    with np.errstate(divide="ignore"):
        evidence = np.log(np.column_stack([likelihood[:, :kept], rest]))
        weight = np.log(np.append(prior.probabilities, [0.0, 1.0]))[names]
    # An output that nothing explains explains itself.
    blind = ~np.isfinite(evidence).any(axis=1)
    evidence[blind, -1] = 0.0
    place = np.searchsorted(channel.outputs, observed)
    return Lattice(candidates=names[place], evidence=evidence[place], prior=weight[place])

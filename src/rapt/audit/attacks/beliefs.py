"""An attacker's belief in each candidate after a look at the words around it, by n-grams of his own text.

Text of the attacker's own that he privatized himself: the truth is known there, so he can learn on it.

It is laid out like the text that is attacked: candidates, evidence, and what an n-gram model believes. The model never
saw the sentence that it judges: each half of the shadow text is believed in by the n-grams of the other half and of
the public text that was not privatized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.desk import Desk, Lattice, Progress, build_lattice
from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.language.ngram import AnyModel, compute_posteriors, fit_ngram
from rapt.audit.view import CANDIDATES

# Two words are looked back to among the candidates that are left after a look at one: K³ steps a token, of which so
# many are taken in all, and never with fewer candidates than these.
_STEPS: Final = 20_000_000
_LEAST_WIDTH: Final = 6


def compute_beliefs(desk: Desk, *, on_progress: Progress | None = None) -> NDArray[np.float64]:
    """Log P(candidate | all that was seen) of the text that is attacked, worked out once for all attacks."""
    return desk.once(
        "beliefs",
        lambda: believe_in_context(
            desk.lattice(),
            lengths=desk.view.lengths,
            models=(desk.ngrams(order=2), desk.ngrams(order=3)),
            on_progress=on_progress,
        ),
    )


def believe_in_context(
    lattice: Lattice,
    *,
    lengths: NDArray[np.int64],
    models: tuple[AnyModel, AnyModel],
    on_progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Log P(candidate | all that was seen), (n, K + 1): first with one word before, then with two where it matters.

    Args:
        lattice: Lattice of the tokens.
        lengths: Tokens of each record.
        models: Models of order 2 and of order 3.
        on_progress: Called with the share done.
    """
    pairs, triples = models
    first = compute_posteriors(
        lattice.candidates,
        lattice.evidence,
        lengths=lengths,
        model=pairs,
        on_progress=scale_progress(on_progress, 0.0, 0.3),
    )
    width = max(_LEAST_WIDTH, int((_STEPS / len(lattice.candidates)) ** (1 / 3)))
    width = min(width, lattice.candidates.shape[1] - 1)
    order = np.argsort(-first[:, :-1], axis=1, kind="stable")
    kept, left = order[:, :width], order[:, width:]
    with np.errstate(divide="ignore"):
        rest = np.exp(np.take_along_axis(lattice.evidence + lattice.prior, left, axis=1)).sum(axis=1)
        rest = np.log(rest + np.exp(lattice.evidence[:, -1]))
    second = compute_posteriors(
        np.column_stack([np.take_along_axis(lattice.candidates, kept, axis=1), lattice.candidates[:, -1]]),
        np.column_stack([np.take_along_axis(lattice.evidence, kept, axis=1), rest]),
        lengths=lengths,
        model=triples,
        on_progress=scale_progress(on_progress, 0.3, 1.0),
    )
    # The candidates that were left keep the order of the first pass, and share what "something else" got.
    beliefs = np.empty_like(first)
    share = normalize_rows(np.column_stack([np.take_along_axis(first, left, axis=1), first[:, -1]]))
    np.put_along_axis(beliefs, np.column_stack([left, np.full(len(left), -1)]), second[:, -1:] + share, axis=1)
    np.put_along_axis(beliefs, kept, second[:, :-1], axis=1)
    return beliefs


def rank_candidates(lattice: Lattice, beliefs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The candidates by falling belief, without "something else", (n, up to `CANDIDATES`)."""
    order = np.argsort(-beliefs[:, :-1], axis=1, kind="stable")[:, :CANDIDATES]
    return np.take_along_axis(lattice.candidates, order, axis=1)


def normalize_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log shares of one for each row; a row of -inf stays as it is."""
    top = values.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(values - top).sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = values - top - np.log(np.where(total > 0, total, 1.0))
    return found


def scale_progress(on_progress: Progress | None, low: float, high: float) -> Progress | None:
    """Progress of a part of the work, from `low` to `high` of the whole."""
    return None if on_progress is None else (lambda share: on_progress(low + (high - low) * share))


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Tokens of public text that are privatized to learn from; their channel takes the time.
SHADOW_TOKENS: Final = 40_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadow:
    """Texts whose truth and whose privatized form the attacker has. n tokens, K candidates.

    Attributes:
        texts: Texts in clear.
        released: The same after the mechanism, (n,).
        others: The rest of the public texts.
        lattice: Lattice of the privatized tokens of `texts`.
        beliefs: log P(candidate | all that was seen), by n-grams that did not see the text, (n, K + 1).
    """

    texts: tuple[Ints, ...]
    released: Ints
    others: tuple[Ints, ...]
    lattice: Lattice
    beliefs: Floats

    @property
    def lengths(self) -> Ints:
        """Tokens of each text."""
        return np.array([len(text) for text in self.texts], dtype=np.int64)

    @property
    def truth(self) -> Ints:
        """The tokens in clear, (n,)."""
        return np.concatenate(self.texts)

    @property
    def target(self) -> Ints:
        """Column of the true token among the candidates, (n,): the last, "something else", where it is not one."""
        hits = self.lattice.candidates[:, :-1] == self.truth[:, None]
        column: Ints = np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])
        return column

    def take_texts(self, texts: int) -> Shadow:
        """The first so many texts; the others go to the rest."""
        tokens = slice(0, int(self.lengths[:texts].sum()))
        return Shadow(
            texts=self.texts[:texts],
            released=self.released[tokens],
            others=(*self.texts[texts:], *self.others),
            lattice=take_tokens(self.lattice, tokens),
            beliefs=self.beliefs[tokens],
        )


def make_shadow(desk: Desk, *, on_progress: Progress | None = None) -> Shadow:
    """The shadow text of a desk, made once."""
    return desk.once("shadow", lambda: _make(desk, on_progress))


def take_tokens(lattice: Lattice, part: slice) -> Lattice:
    """Some tokens of a lattice."""
    return replace(
        lattice, candidates=lattice.candidates[part], evidence=lattice.evidence[part], prior=lattice.prior[part]
    )


def _make(desk: Desk, on_progress: Progress | None) -> Shadow:
    rng = desk.rng("shadow")
    order = rng.permutation(len(desk.public.contents))
    held = np.cumsum([len(desk.public.contents[i]) for i in order])
    chosen = order[: int(np.searchsorted(held, SHADOW_TOKENS)) + 1]
    texts = [desk.public.contents[i] for i in chosen]
    released = desk.mechanism().privatize(np.concatenate(texts), rng=rng)
    channel = _add_outputs(desk, np.unique(released), on_progress)
    lattice = build_lattice(channel, released, desk.prior(), width=desk.lattice().candidates.shape[1] - 1)
    rest = [desk.public.contents[i] for i in order[len(chosen) :]]
    middle = len(texts) // 2
    parts = (texts[:middle], texts[middle:])
    beliefs = np.empty(lattice.evidence.shape)
    start = 0
    for own, other in (parts, parts[::-1]):
        if own:
            part = slice(start, start + sum(map(len, own)))
            models = [fit_ngram([*other, *rest], desk.prior(), order=n) for n in (2, 3)]
            beliefs[part] = believe_in_context(
                take_tokens(lattice, part), lengths=np.array([len(text) for text in own]), models=(models[0], models[1])
            )
            start = part.stop
    return Shadow(texts=tuple(texts), released=released, others=tuple(rest), lattice=lattice, beliefs=beliefs)


def _add_outputs(desk: Desk, outputs: Ints, on_progress: Progress | None) -> ChannelEstimate:
    """The channel at these outputs, of which those that were seen are there already."""
    known = desk.channel()
    missing = np.setdiff1d(outputs, known.outputs)
    if not len(missing):
        return known
    more = desk.channel_at(missing, prior=desk.prior().probabilities, on_progress=on_progress)
    order = np.argsort(np.concatenate([known.outputs, more.outputs]))
    unlisted = [part.unlisted if part.unlisted is not None else np.zeros(len(part.outputs)) for part in (known, more)]
    return ChannelEstimate(
        outputs=np.concatenate([known.outputs, more.outputs])[order],
        sources=np.concatenate([known.sources, more.sources])[order],
        likelihood=np.concatenate([known.likelihood, more.likelihood])[order],
        unlisted=np.concatenate(unlisted)[order],
    )

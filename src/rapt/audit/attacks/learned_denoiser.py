"""Token recovery by a network that learned from text which the attacker privatized himself.

The attacker knows the mechanism, so he can make as many pairs of clear and privatized text as he likes. The network
reads what the channel and an n-gram model believe about every token of a text, and corrects those beliefs. A tenth of
the public text is held out: the correction is kept only as far as it helps there, so the attack is about as good as
`context` where there is nothing more to learn.

Source: Qu et al., "Natural Language Understanding with Privacy-Preserving BERT", CIKM 2021 (denoising), and the server
side of SnD, ICML 2024; here as a correction of exact evidence, which needs far less text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.context import contextual_beliefs, ranked
from rapt.audit.attacks.desk import Desk, Lattice, Progress, lattice_of
from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.guess import Guess
from rapt.audit.language.ngram import fit_ngram

# Tokens of public text that are privatized to learn from: with MiniLM's table their channel takes half a minute.
TRAINING_TOKENS: Final = 40_000


def learned_denoiser(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates that the network believes in most.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    from rapt.audit.attacks.denoiser_training import train_denoiser

    def report(share: float) -> None:
        if on_progress is not None:
            on_progress(share)

    rng = desk.rng("denoiser")
    # In random order, and cut into two halves of which each is believed in by the n-grams of the other.
    order = rng.permutation(len(desk.public.contents))
    held = np.cumsum([len(desk.public.contents[i]) for i in order])
    chosen = order[: int(np.searchsorted(held, TRAINING_TOKENS)) + 1]
    texts = [desk.public.contents[i] for i in chosen]
    clear = np.concatenate(texts)
    released = desk.mechanism().privatize(clear, rng=rng)
    channel = _with_outputs(desk, np.unique(released), lambda share: report(0.4 * share))
    shadow = lattice_of(channel, released, desk.prior(), width=desk.lattice().candidates.shape[1] - 1)
    middle = len(texts) // 2
    rest = [desk.public.contents[i] for i in order[len(chosen) :]]
    parts = (texts[:middle], texts[middle:])
    beliefs = np.empty(shadow.evidence.shape)
    start = 0
    for own, other in (parts, parts[::-1]):
        if own:
            part = slice(start, start + sum(map(len, own)))
            models = [fit_ngram([*other, *rest], desk.prior(), order=n) for n in (2, 3)]
            beliefs[part] = contextual_beliefs(
                _rows(shadow, part), lengths=np.array([len(text) for text in own]), models=(models[0], models[1])
            )
            start = part.stop
    report(0.5)
    lattice = desk.lattice()
    own_beliefs = contextual_beliefs(
        lattice, lengths=desk.view.lengths, models=(desk.ngrams(order=2), desk.ngrams(order=3))
    )
    report(0.6)
    denoiser = train_denoiser(
        desk.view.bundle,
        candidates=shadow.candidates,
        beliefs=beliefs,
        truth=clear,
        lengths=np.array([len(text) for text in texts]),
        seed=int(rng.integers(2**31)),
        on_progress=lambda share: report(0.6 + 0.35 * share),
    )
    corrected = denoiser.correct(lattice.candidates, own_beliefs, lengths=desk.view.lengths)
    remark = f"{denoiser.remark}, {len(clear):,} tokens of {desk.public.source}, privatized by the attacker"
    return Guess(token_ids=ranked(lattice, corrected), remarks=(remark,))


def _with_outputs(desk: Desk, outputs: NDArray[np.int64], on_progress: Progress) -> ChannelEstimate:
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


def _rows(lattice: Lattice, part: slice) -> Lattice:
    return replace(
        lattice, candidates=lattice.candidates[part], evidence=lattice.evidence[part], prior=lattice.prior[part]
    )

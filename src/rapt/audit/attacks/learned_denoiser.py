"""Token recovery by a network that learned from text which the attacker privatized himself.

The attacker knows the mechanism, so he can make as many pairs of clear and privatized text as he likes. The network
reads what the channel and an n-gram model believe about every token of a text, and corrects those beliefs. A tenth of
the public text is held out: the correction is kept only as far as it helps there, so the attack is about as good as
`context` where there is nothing more to learn.

Source: Qu et al., "Natural Language Understanding with Privacy-Preserving BERT", CIKM 2021 (denoising), and the server
side of SnD, ICML 2024; here as a correction of exact evidence, which needs far less text.
"""

from __future__ import annotations

from rapt.audit.attacks.beliefs import desk_beliefs, ranked, scaled
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.attacks.shadow import shadow
from rapt.audit.guess import Guess


def learned_denoiser(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates that the network believes in most.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    from rapt.audit.attacks.denoiser_training import train_denoiser

    known = shadow(desk, on_progress=scaled(on_progress, 0.0, 0.5))
    beliefs = desk_beliefs(desk, on_progress=scaled(on_progress, 0.5, 0.6))
    denoiser = train_denoiser(
        desk.view.bundle,
        candidates=known.lattice.candidates,
        beliefs=known.beliefs,
        truth=known.truth,
        lengths=known.lengths,
        seed=int(desk.rng("denoiser").integers(2**31)),
        on_progress=scaled(on_progress, 0.6, 0.95),
    )
    lattice = desk.lattice()
    corrected = denoiser.correct(lattice.candidates, beliefs, lengths=desk.view.lengths)
    remark = f"{denoiser.remark}, {len(known.truth):,} tokens of {desk.public.source}, privatized by the attacker"
    return Guess(token_ids=ranked(lattice, corrected), remarks=(remark,))

"""Token recovery from the channel, n-grams and a masked language model, by sweeps over each text.

A masked language model looks at all words of a text at once, on both sides, where n-grams look two words back. What it
says is added to what the channel and the n-grams say, with weights that were fitted on the attacker's shadow text, and
the text is swept over (`language.sweeps`): each position is drawn given the others as they were last drawn.

Source: "channel and language model posterior" is the text analogue of Kazemi et al., "BeamClean", 2025; masked language
models as readers of privatized text are Yue et al.'s ("SanText", 2021), who use neither the mechanism nor the token
that was seen. This attack uses both.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.beliefs import desk_beliefs, ranked, scaled
from rapt.audit.attacks.desk import Desk, Lattice, Progress
from rapt.audit.attacks.shadow import shadow
from rapt.audit.attacks.weighing import LEAST, weigh
from rapt.audit.guess import Guess
from rapt.audit.language.layout import place_in_text
from rapt.audit.language.sweeps import Conditional, sweep

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Tokens of shadow text on which the weights are fitted, and the largest share of the shadow text that they may take.
_WEIGHED_TOKENS: Final = 8_000
_WEIGHED_SHARE: Final = 0.2
# Every fourth word is hidden at once: as in the training of the model.
_BLOCKS: Final = 4
_SWEEPS: Final = 3
# Weights of channel, n-grams, frequency, being something else, and the language model.
_START: Final = np.array([0.0, 1.0, 0.0, 0.0, 0.0])


def masked_sweeps(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest mean probability over the sweeps.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    from rapt.audit.language.masked_network import train_masked_language_model

    known = shadow(desk, on_progress=scaled(on_progress, 0.0, 0.3))
    beliefs = desk_beliefs(desk, on_progress=scaled(on_progress, 0.3, 0.4))
    size = min(_WEIGHED_TOKENS, _WEIGHED_SHARE * desk.public.tokens)
    known = known.part(max(1, int(np.searchsorted(np.cumsum(known.lengths), size))))
    lattice, lengths = desk.lattice(), desk.view.lengths
    model = train_masked_language_model(
        desk.view.bundle,
        known.others or known.texts,
        longest=int(max(lengths.max(), known.lengths.max())),
        seed=int(desk.rng("masked").integers(2**31)),
        on_progress=scaled(on_progress, 0.4, 0.7),
    )

    def said(lattice: Lattice, lengths: Ints) -> Conditional:
        def conditional(tokens: Ints, asked: NDArray[np.bool_]) -> Floats:
            candidates = lattice.candidates[asked, :-1]
            found = model.log_probability(tokens, asked, candidates, lengths=lengths)
            return _with_something_else(found, lattice.prior[asked])

        return conditional

    # On the shadow text the weights are fitted to one look, given the n-grams' choice.
    start = ranked(known.lattice, known.beliefs)[:, 0]
    look = once_over(said(known.lattice, known.lengths), start, known.lengths, width=known.beliefs.shape[1])
    weights = weigh(_features(known.lattice, known.beliefs, look), known.target, start=_START)
    own = said(lattice, lengths)
    still = np.tensordot(weights[:-1], _features(lattice, beliefs, None), axes=1)
    found = sweep(
        lattice.candidates,
        still,
        lengths=lengths,
        start=ranked(lattice, beliefs)[:, 0],
        conditional=lambda tokens, asked: weights[-1] * own(tokens, asked),
        rng=desk.rng("sweeps"),
        blocks=_BLOCKS,
        sweeps=_SWEEPS,
        on_progress=scaled(on_progress, 0.75, 1.0),
    )
    return Guess(token_ids=ranked(lattice, found), remarks=(f"{model.remark} of {desk.public.source}",))


def once_over(conditional: Conditional, tokens: Ints, lengths: Ints, *, width: int) -> Floats:
    """What a conditional says of every position, given these tokens, (n, width)."""
    place = place_in_text(lengths)
    found = np.empty((len(tokens), width))
    for block in range(_BLOCKS):
        asked = place % _BLOCKS == block
        if asked.any():
            found[asked] = conditional(tokens, asked)
    return found


def _features(lattice: Lattice, beliefs: Floats, look: Floats | None) -> Floats:
    """Of each candidate, (F, n, K + 1); the last is the language model, if it was asked."""
    something_else = np.zeros(beliefs.shape)
    something_else[:, -1] = 1
    parts = [lattice.evidence, beliefs, lattice.prior, something_else]
    parts += [] if look is None else [look]
    return np.maximum(np.stack(parts), LEAST)


def _with_something_else(found: Floats, prior: Floats) -> Floats:
    """A last column: how much likelier than by frequency alone a token is that is not a candidate, in nats."""
    left, usual = 1 - np.exp(found).sum(axis=1), 1 - np.exp(prior[:, :-1]).sum(axis=1)
    return np.column_stack([found, np.log(np.maximum(left, 1e-6) / np.maximum(usual, 1e-6))])

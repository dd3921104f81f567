"""Token recovery from the channel and from context: P(x_t | all of y), by sums over an n-gram model of public text.

Exact where the texts come from that model and every source is a candidate (`language.lattice`). Elsewhere a token that
is not among the candidates is "something else", with the probability that the channel gives to all such tokens: without
that, wrong candidates are believed too much, and their neighbours after them.

Source: the text analogue of Kazemi et al., "BeamClean", 2025, whose noise has to be guessed; here it is published. Sums
and not a beam, because they name more tokens rightly.
"""

from __future__ import annotations

from rapt.audit.attacks.beliefs import desk_beliefs, ranked, scaled
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.guess import Guess


def contextual(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest probability given everything seen in its text.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    desk.channel(scaled(on_progress, 0.0, 0.5))
    beliefs = desk_beliefs(desk, on_progress=scaled(on_progress, 0.5, 1.0))
    return Guess(token_ids=ranked(desk.lattice(), beliefs), remarks=(f"a trigram model of {desk.public.source}",))

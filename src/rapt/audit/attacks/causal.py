"""Token recovery from the channel, n-grams and a large causal language model, with a beam over each text.

The language model was trained on very much text of every kind, and remembers a text from its beginning; it knows what
comes later only by what a reading costs there. What it says beyond the frequency of a word is added, with a weight, to
what the channel and the n-grams say.

Source: Kazemi et al., "BeamClean", 2025; here with the noise known, words of two vocabularies (`decoder_reader`), and
shares of readings in place of the best one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.beliefs import desk_beliefs, ranked, scaled
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.attacks.weighing import LEAST
from rapt.audit.guess import Guess
from rapt.audit.language.beam import Reader, beam_beliefs
from rapt.audit.language.written import written_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DECODER: Final = "smollm2"
# The decoder reads one to two pieces for each reading and token, which is what takes the time.
_BEAMS: Final = 8
_LATER: Final = 3
_TOGETHER: Final = 4
# Candidates of each token that the beam tries, by the belief of the n-grams; one more is "something else".
_WIDTH: Final = 12
# Of what the decoder says beyond frequencies. Not fitted: fitting takes as long as the attack.
_WEIGHT: Final = 0.3


class _Weighted:
    """A reader whose word counts for less."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def offer(self, candidates: Ints) -> Floats:
        found: Floats = _WEIGHT * self._reader.offer(candidates)
        return found

    def take(self, parents: Ints, candidates: Ints) -> Floats:
        found: Floats = _WEIGHT * self._reader.take(parents, candidates)
        return found


def causal_beam(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates that most readings go through.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    from rapt.audit.language.decoder_reader import Decoder

    beliefs = desk_beliefs(desk, on_progress=scaled(on_progress, 0.0, 0.2))
    lattice = desk.lattice()
    decoder = Decoder(written_rows(desk.view.bundle), model=DECODER)
    order = np.argsort(-beliefs[:, :-1], axis=1, kind="stable")
    tried, left = order[:, :_WIDTH], order[:, _WIDTH:]
    columns = np.column_stack([tried, np.full(len(tried), beliefs.shape[1] - 1)])
    # What is not tried belongs to "something else".
    rest = np.logaddexp.reduce(np.column_stack([np.take_along_axis(beliefs, left, axis=1), beliefs[:, -1]]), axis=1)
    still = np.take_along_axis(beliefs - _WEIGHT * np.maximum(lattice.prior, LEAST), columns, axis=1)
    still[:, -1] = rest
    found = beam_beliefs(
        np.take_along_axis(lattice.candidates, columns, axis=1),
        np.maximum(still, LEAST),
        lengths=desk.view.lengths,
        read=lambda rows: _Weighted(decoder.reader(rows)),
        beams=_BEAMS,
        later=_LATER,
        together=_TOGETHER,
        on_progress=scaled(on_progress, 0.2, 1.0),
    )
    # What was not tried follows in the order of the n-grams.
    everything = beliefs - 1e6
    np.put_along_axis(everything, tried, found[:, :-1], axis=1)
    return Guess(token_ids=ranked(lattice, everything), remarks=(f"the decoder {DECODER}, {_BEAMS} readings a text",))

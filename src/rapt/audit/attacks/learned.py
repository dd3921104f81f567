"""Attacks that ask a network, which is trained where it runs.

How much to believe each source of an attacker's beliefs: weights fitted on text whose truth he knows.

Evidence of the channel, sums over n-grams and a language model all say something about each candidate, partly the same
thing twice. The logarithms are added with weights that make the true candidates of the shadow text likeliest: a
conditional logit (McFadden 1974), convex, with a handful of weights, so a few thousand tokens are enough.

Token recovery from the channel, n-grams and a masked language model, by sweeps over each text.

A masked language model looks at all words of a text at once, on both sides, where n-grams look two words back. What it
says is added to what the channel and the n-grams say, with weights that were fitted on the attacker's shadow text, and
the text is swept over (`language.sweeps`): each position is drawn given the others as they were last drawn.

Source: "channel and language model posterior" is the text analogue of Kazemi et al., "BeamClean", 2025; masked language
models as readers of privatized text are Yue et al.'s ("SanText", 2021), who use neither the mechanism nor the token
that was seen. This attack uses both.

Token recovery from the channel, n-grams and a large causal language model, with a beam over each text.

The language model was trained on very much text of every kind, and remembers a text from its beginning; it knows what
comes later only by what a reading costs there. What it says beyond the frequency of a word is added, with a weight, to
what the channel and the n-grams say.

Source: Kazemi et al., "BeamClean", 2025; here with the noise known, words of two vocabularies (`decoder_reader`), and
shares of readings in place of the best one.

Token recovery by a network that learned from text which the attacker privatized himself.

The attacker knows the mechanism, so he can make as many pairs of clear and privatized text as he likes. The network
reads what the channel and an n-gram model believe about every token of a text, and corrects those beliefs. A tenth of
the public text is held out: the correction is kept only as far as it helps there, so the attack is about as good as
`context` where there is nothing more to learn.

Source: Qu et al., "Natural Language Understanding with Privacy-Preserving BERT", CIKM 2021 (denoising), and the server
side of SnD, ICML 2024; here as a correction of exact evidence, which needs far less text.

Tong et al.'s contextual attack: the score without context, times what a classifier says of each candidate in place.

For each token the likeliest sources without context are candidates. A classifier reads two sentences, the privatized
one as it was seen and the same with a candidate in one place, and says how likely the candidate is the true word. Its
answer is multiplied with prior(x) P(y|x), and the largest product is named.

The product counts the channel twice where the classifier has learned it too, and the classifier sees privatized
neighbours only, so this attack does not reach the optimum of a Markov source; `context` does. It is here because it is
the strongest attack that was published, for comparison.

Source: Tong et al., NAACL 2025, the attack with context.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from rapt.audit.attacks.beliefs import compute_beliefs, make_shadow, rank_candidates, scale_progress
from rapt.audit.attacks.desk import Desk, Lattice, Progress
from rapt.audit.language.layout import number_tokens, write_rows
from rapt.audit.language.search import Conditional, LanguageReader, search_beam, sweep
from rapt.audit.view import CANDIDATES, Guess

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A logarithm below this says "no" as loudly; it bounds what one wrong belief can do to the fit.
LEAST: Final = -30.0
# Keeps weights near where they begin when there is little text, as if so many tokens had been seen.
_CAUTION: Final = 20.0


def weigh(features: Floats, target: Ints, *, start: Floats) -> Floats:
    """Weights of the features, (F,).

    Args:
        features: Features of each candidate of each token, (F, n, K).
        target: Column of the true candidate, (n,).
        start: Weights to begin with, and to stay near, (F,).
    """
    chosen = np.take_along_axis(features, target[None, :, None], axis=2)[..., 0]  # (F, n)

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = np.tensordot(weights, features, axes=1)
        total = logsumexp(score, axis=1)
        expected = np.einsum("fnk,nk->fn", features, np.exp(score - total[:, None]))
        away = weights - start
        value = float((total - weights @ chosen).sum() + _CAUTION / 2 * away @ away)
        return value, (expected - chosen).sum(axis=1) + _CAUTION * away

    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


# Tokens of shadow text on which the weights are fitted, and the largest share of the shadow text that they may take.
_WEIGHED_TOKENS: Final = 8_000
_WEIGHED_SHARE: Final = 0.2
# Every fourth word is hidden at once: as in the training of the model.
_BLOCKS: Final = 4
_SWEEPS: Final = 3
# Weights of channel, n-grams, frequency, being something else, and the language model.
_START: Final = np.array([0.0, 1.0, 0.0, 0.0, 0.0])


def sweep_with_masked_model(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest mean probability over the sweeps.

    Args:
        desk: Desk of the attacker, with public text on it.
        on_progress: Called with the share done.
    """
    from rapt.audit.language.networks import train_masked_language_model

    known = make_shadow(desk, on_progress=scale_progress(on_progress, 0.0, 0.3))
    beliefs = compute_beliefs(desk, on_progress=scale_progress(on_progress, 0.3, 0.4))
    size = min(_WEIGHED_TOKENS, _WEIGHED_SHARE * desk.public.tokens)
    known = known.take_texts(max(1, int(np.searchsorted(np.cumsum(known.lengths), size))))
    lattice, lengths = desk.lattice(), desk.view.lengths
    model = train_masked_language_model(
        desk.view.bundle,
        known.others or known.texts,
        longest=int(max(lengths.max(), known.lengths.max())),
        seed=int(desk.rng("masked").integers(2**31)),
        on_progress=scale_progress(on_progress, 0.4, 0.7),
    )

    def said(lattice: Lattice, lengths: Ints) -> Conditional:
        def conditional(tokens: Ints, asked: NDArray[np.bool_]) -> Floats:
            candidates = lattice.candidates[asked, :-1]
            found = model.log_probability(tokens, asked, candidates, lengths=lengths)
            return _add_something_else(found, lattice.prior[asked])

        return conditional

    # On the shadow text the weights are fitted to one look, given the n-grams' choice.
    start = rank_candidates(known.lattice, known.beliefs)[:, 0]
    look = look_once(said(known.lattice, known.lengths), start, known.lengths, width=known.beliefs.shape[1])
    weights = weigh(_compute_features(known.lattice, known.beliefs, look), known.target, start=_START)
    own = said(lattice, lengths)
    still = np.tensordot(weights[:-1], _compute_features(lattice, beliefs, None), axes=1)
    found = sweep(
        lattice.candidates,
        still,
        lengths=lengths,
        start=rank_candidates(lattice, beliefs)[:, 0],
        conditional=lambda tokens, asked: weights[-1] * own(tokens, asked),
        rng=desk.rng("sweeps"),
        blocks=_BLOCKS,
        sweeps=_SWEEPS,
        on_progress=scale_progress(on_progress, 0.75, 1.0),
    )
    return Guess(token_ids=rank_candidates(lattice, found), remarks=(f"{model.remark} of {desk.public.source}",))


def look_once(conditional: Conditional, tokens: Ints, lengths: Ints, *, width: int) -> Floats:
    """Ask a conditional about every position, given these tokens, (n, width)."""
    place = number_tokens(lengths)
    found = np.empty((len(tokens), width))
    for block in range(_BLOCKS):
        asked = place % _BLOCKS == block
        if asked.any():
            found[asked] = conditional(tokens, asked)
    return found


def _compute_features(lattice: Lattice, beliefs: Floats, look: Floats | None) -> Floats:
    """The features of each candidate, (F, n, K + 1); the last is the language model, if it was asked."""
    something_else = np.zeros(beliefs.shape)
    something_else[:, -1] = 1
    parts = [lattice.evidence, beliefs, lattice.prior, something_else]
    parts += [] if look is None else [look]
    return np.maximum(np.stack(parts), LEAST)


def _add_something_else(found: Floats, prior: Floats) -> Floats:
    """A last column: how much likelier than by frequency alone a token is that is not a candidate, in nats."""
    left, usual = 1 - np.exp(found).sum(axis=1), 1 - np.exp(prior[:, :-1]).sum(axis=1)
    return np.column_stack([found, np.log(np.maximum(left, 1e-6) / np.maximum(usual, 1e-6))])


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

    def __init__(self, reader: LanguageReader) -> None:
        self._reader = reader

    def offer(self, candidates: Ints) -> Floats:
        found: Floats = _WEIGHT * self._reader.offer(candidates)
        return found

    def take(self, parents: Ints, candidates: Ints) -> Floats:
        found: Floats = _WEIGHT * self._reader.take(parents, candidates)
        return found


def search_with_decoder(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates that most readings go through.

    Args:
        desk: Desk of the attacker, with public text on it.
        on_progress: Called with the share done.
    """
    from rapt.audit.language.networks import Decoder

    beliefs = compute_beliefs(desk, on_progress=scale_progress(on_progress, 0.0, 0.2))
    lattice = desk.lattice()
    chosen = desk.decoder()
    decoder = Decoder(write_rows(desk.view.bundle), model=chosen.model)
    order = np.argsort(-beliefs[:, :-1], axis=1, kind="stable")
    tried, left = order[:, :_WIDTH], order[:, _WIDTH:]
    columns = np.column_stack([tried, np.full(len(tried), beliefs.shape[1] - 1)])
    # What is not tried belongs to "something else".
    rest = np.logaddexp.reduce(np.column_stack([np.take_along_axis(beliefs, left, axis=1), beliefs[:, -1]]), axis=1)
    still = np.take_along_axis(beliefs - _WEIGHT * np.maximum(lattice.prior, LEAST), columns, axis=1)
    still[:, -1] = rest
    found = search_beam(
        np.take_along_axis(lattice.candidates, columns, axis=1),
        np.maximum(still, LEAST),
        lengths=desk.view.lengths,
        read=lambda rows: _Weighted(decoder.reader(rows)),
        beams=_BEAMS,
        later=_LATER,
        together=_TOGETHER,
        on_progress=scale_progress(on_progress, 0.2, 1.0),
    )
    # What was not tried follows in the order of the n-grams.
    everything = beliefs - 1e6
    np.put_along_axis(everything, tried, found[:, :-1], axis=1)
    return Guess(
        token_ids=rank_candidates(lattice, everything),
        remarks=(
            f"the decoder {chosen.described}",
            f"{_BEAMS} readings a text",
        ),
    )


def learned_denoiser(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates that the network believes in most.

    Args:
        desk: Desk of the attacker, with public text on it.
        on_progress: Called with the share done.
    """
    from rapt.audit.attacks.denoiser_training import train_denoiser

    known = make_shadow(desk, on_progress=scale_progress(on_progress, 0.0, 0.5))
    beliefs = compute_beliefs(desk, on_progress=scale_progress(on_progress, 0.5, 0.6))
    denoiser = train_denoiser(
        desk.view.bundle,
        candidates=known.lattice.candidates,
        beliefs=known.beliefs,
        truth=known.truth,
        lengths=known.lengths,
        seed=int(desk.rng("denoiser").integers(2**31)),
        on_progress=scale_progress(on_progress, 0.6, 0.95),
    )
    lattice = desk.lattice()
    corrected = denoiser.correct(lattice.candidates, beliefs, lengths=desk.view.lengths)
    remark = f"{denoiser.remark}, {len(known.truth):,} tokens of {desk.public.source}, privatized by the attacker"
    return Guess(token_ids=rank_candidates(lattice, corrected), remarks=(remark,))


def classify_candidates(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest product.

    Args:
        desk: Desk of the attacker, with public text on it.
        on_progress: Called with the share done.
    """
    from rapt.audit.attacks.pair_classifier import train_pair_classifier

    known = make_shadow(desk, on_progress=scale_progress(on_progress, 0.0, 0.3))
    classifier = train_pair_classifier(
        desk.view.bundle,
        seen=known.released,
        candidates=known.lattice.candidates[:, :-1][:, :CANDIDATES],
        truth=known.truth,
        lengths=known.lengths,
        longest=int(max(known.lengths.max(), desk.view.lengths.max())),
        seed=int(desk.rng("tong").integers(2**31)),
        on_progress=scale_progress(on_progress, 0.3, 0.6),
    )
    lattice = desk.lattice()
    believed = without_context(lattice)
    said = classifier.log_probability(
        desk.view.observed,
        lattice.candidates[:, :-1][:, :CANDIDATES],
        lengths=desk.view.lengths,
        on_progress=scale_progress(on_progress, 0.6, 1.0),
    )
    believed[:, : said.shape[1]] += said
    # What was not judged stays behind what was.
    believed[:, said.shape[1] :] += 2 * LEAST
    remark = f"{classifier.remark}, {desk.public.source}, privatized by the attacker"
    return Guess(token_ids=rank_candidates(lattice, believed), remarks=(remark,))


def without_context(lattice: Lattice) -> NDArray[np.float64]:
    """Log prior(x) P(y|x) of each candidate, (n, K + 1)."""
    found: NDArray[np.float64] = np.maximum(lattice.evidence + lattice.prior, LEAST)
    return found

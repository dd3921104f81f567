"""P(y|x) of mechanisms with Laplace noise, stretched or not, which has no closed form above one dimension.

Counting outputs would need about 1 / P(y|x) draws a pair, and the pairs that matter have P near 10^-5. Here each draw
gives every pair a smooth value, because one direction of the noise is integrated exactly:

1. z of density proportional to exp(-η||z||) is sqrt(w)·g with w ~ Gamma((d + 1)/2, scale 2/η²) and g ~ N(0, I): the
   mixture over w of N(0, wI) is a multiple of K_½(η||z||)·sqrt(||z||), which is exp(-η||z||).
2. Fix an output y, let u be the unit vector along E(y), the table's mean taken as origin (any direction fixed by y is
   right; this one varies little). Given w, the part of z along u is t ~ N(0, w), independent of the rest of z.
3. With s(v) = (E(x) + z)·E(v) - ||E(v)||²/2, the nearest token is the one of largest s. Moving t by τ changes
   s(y) - s(v) by τ·u·(E(y) - E(v)), so y wins exactly on an interval of τ: above (s(v) - s(y)) / u·(E(y) - E(v)) for
   every v with a positive divisor, below it for every v with a negative one.
4. P(y|x) is the mean over draws of the normal probability of that interval: the law of total expectation, no more.

`mahalanobis` adds Lz in place of z. (Lz)·E(v) is z·(L'E(v)), so every product of the noise with a row is one with the
stretched row L'E(v); products of the source and lengths stay as they are, and u is the unit vector along L'E(y).

`vickrey` puts out the nearest token with a probability c, else the second: P(y|x) = c·P(y is first) + (1 - c)·P(y is
second). y is first or second where one competitor at most beats it: between the second bounds on either side, without
what lies between the first ones where these cross. c is taken at the noisy vector of the draw, before it is moved;
where noise is long beside the distances of words it is near 1 - t everywhere.

Truncation: of the tokens that compete with y, only the `COMPETITORS` nearest to the noisy vector and the `NEIGHBOURS`
nearest to y are looked at; in a vocabulary no larger than that, all are. Leaving one out can only raise P(y|x), and for
x = y hardly at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from rapt.audit.channels.estimate import ChannelEstimate, ChannelQuestion
from rapt.local.mechanisms import remake_mechanism
from rapt.local.mechanisms.mahalanobis import MahalanobisMechanism
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle

# Draws of the noise shared by all pairs. More cost time in proportion; a report states what so few may have lost.
DRAWS: Final = 64
COMPETITORS: Final = 8
NEIGHBOURS: Final = 8
# Tokens among which the competitors of one draw are sought: the strongest before the source is added, and those nearest
# to the source. On MiniLM the strongest 8 are never outside.
_STRONGEST: Final = 1024
_NEAR_SOURCE: Final = 32
# Most frequent tokens that are tried as sources beside the output itself.
_TRIED: Final = 4096
# Draws that place the level which an output must reach, where a rough value is enough, and where many are added up: an
# error of the level is shared by all outputs of a source, so that it does not average out.
_ROUGH_DRAWS: Final = 8
_ADDED_DRAWS: Final = 128
# Competitors among which the level is sought where there are many draws.
_ADDED_STRONGEST: Final = 256
_SOURCE_BLOCK: Final = 512
_OUTPUT_BLOCK: Final = 32

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Game:
    """One set of draws on one table. C eligible tokens compete, K draws.

    Attributes:
        table: All rows, mean of the eligible ones taken off, (V, d).
        rows: The competitors' rows, (C, d).
        eligible: Their ids, (C,).
        half_square: ||row||² / 2, (C,).
        stretched: L'row of each competitor, as the noise meets it, (C, d); `rows` where the noise is not stretched.
        reach: ||L'row||, (C,).
        variance: w of each draw, (K,).
        noise: z of each draw, (K, d).
        level: z·L'row - ||row||² / 2, the part of a competitor's score that does not depend on the source, (K, C).
    """

    table: Floats
    rows: Floats
    eligible: Ints
    half_square: Floats
    stretched: Floats
    reach: Floats
    variance: Floats
    noise: Floats
    level: Floats


def estimate_laplace_channel(
    asked: ChannelQuestion,
    *,
    rng: np.random.Generator,
    draws: int = DRAWS,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel of Laplace noise, isotropic or stretched.

    Args:
        asked: Question; of its mechanism eta is read, and the mixing of `mahalanobis`.
        rng: Generator of the draws.
        draws: Number K of draws.
        on_progress: Called with the share done.
    """
    outputs, prior = asked.outputs, asked.prior
    eta = asked.setting.eta
    game = _draw(asked.bundle, asked.setting, draws=draws, rng=rng)
    tuning = asked.setting.parameters.get("tuning")
    assert tuning is None or isinstance(tuning, float)
    places = np.searchsorted(game.eligible, outputs)
    tried = np.flatnonzero(prior > 0)
    tried = np.sort(tried[np.argsort(-prior[tried], kind="stable")[:_TRIED]])
    kept = min(asked.sources, len(tried))
    listed, beyond = _nominate(
        game, tried, prior[tried], outputs=outputs, places=places, eta=eta, kept=kept, second=tuning is not None
    )
    held = np.unique(listed)
    columns = np.searchsorted(held, listed)
    names, scores = _find_strongest(game, held, on_progress=on_progress)
    stays = None if tuning is None else _compute_chance_of_first(game, held, scores, tuning=tuning)
    likelihood = np.empty((*listed.shape, draws), dtype=np.float32)
    for block in _iterate_blocks(len(outputs), _OUTPUT_BLOCK):
        likelihood[block] = _integrate(
            game,
            places[block],
            game.table[listed[block]],
            names[columns[block]],
            scores[columns[block]],
            stays=None if stays is None else stays[columns[block]],
        )
        if on_progress is not None:
            on_progress(0.5 + 0.5 * block.stop / len(outputs))
    padding = listed == outputs[:, None]
    padding[:, 0] = False
    likelihood[padding] = 0
    others = (prior[listed[:, 1:]] * likelihood[:, 1:].mean(axis=2)).sum(axis=1)
    return ChannelEstimate(outputs=outputs, sources=listed, likelihood=likelihood, unlisted=beyond * others)


def compute_rough_log_channel(
    bundle: VocabularyBundle, setting: MechanismSetting, *, sources: Ints, outputs: Ints, rng: np.random.Generator
) -> Floats:
    """A rough log P(y|x) of every pair, (sources, outputs): y must beat a level that depends on the source alone.

    Made to be added up. Over the tokens of a text: on SST-2 the probability that `link_texts` gives to the text it
    names is on average the share that it names rightly, within 4 points from η = 25 to 75. Over releases of a word:
    docs/results/attacks.md.
    """
    game = _draw(bundle, setting, draws=_ADDED_DRAWS, rng=rng)
    places = np.searchsorted(game.eligible, outputs)
    deviation = _compute_deviation(game, places, eta=setting.eta)
    found = np.empty((len(sources), len(outputs)), dtype=np.float32)
    for block in _iterate_blocks(len(sources), _SOURCE_BLOCK):
        level, others = _estimate_level(game, sources[block], draws=_ADDED_DRAWS, strongest=_ADDED_STRONGEST)
        # A source need not beat itself.
        level = np.where(sources[block, None] == outputs, others[:, None], level[:, None])
        reach = game.table[sources[block]] @ game.rows[places].T - level - game.half_square[places]
        found[block] = log_ndtr(reach / deviation)
    return found


def sample_mixture(
    rng: np.random.Generator, *, eta: float, dim: int, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A variance for each row, (n,), and rows normal given it, of density proportional to exp(-eta * ||z||), (n, d)."""
    variance = rng.gamma((dim + 1) / 2, 2 / eta**2, size)
    return variance, np.sqrt(variance)[:, None] * rng.standard_normal((size, dim))


def _draw(bundle: VocabularyBundle, setting: MechanismSetting, *, draws: int, rng: np.random.Generator) -> _Game:
    table = bundle.embeddings - bundle.embeddings[bundle.eligible].mean(axis=0)
    rows = np.ascontiguousarray(table[bundle.eligible])
    half_square = np.einsum("ij,ij->i", rows, rows) / 2
    variance, noise = sample_mixture(rng, eta=setting.eta, dim=table.shape[1], size=draws)
    noise32 = noise.astype(np.float32)
    stretched = rows
    if setting.name == "mahalanobis":
        mechanism = cast(MahalanobisMechanism, remake_mechanism(setting, vocabulary=Vocabulary(bundle)))
        stretched = rows @ mechanism.root.astype(np.float32)
    reach = np.linalg.norm(stretched, axis=1)
    level = noise32 @ stretched.T - half_square
    variance32 = variance.astype(np.float32)
    return _Game(table, rows, bundle.eligible, half_square, stretched, reach, variance32, noise32, level)


def _compute_deviation(game: _Game, places: Ints, *, eta: float) -> Floats:
    """The standard deviation of the noise's part in the score of each output, (O,), above 0."""
    found: Floats = np.float32(np.sqrt(game.table.shape[1] + 1) / eta) * game.reach[places]
    return np.maximum(found, np.finfo(np.float32).tiny)


def _nominate(
    game: _Game,
    tried: Ints,
    prior: NDArray[np.float64],
    *,
    outputs: Ints,
    places: Ints,
    eta: float,
    kept: int,
    second: bool = False,
) -> tuple[Ints, NDArray[np.float64]]:
    """The sources worth a close look, the output itself first, (O, 1 + kept), and what is left out of them, (O,).

    They are the largest by prior(x) times a rough P(y|x): y must beat a level that depends on the source alone, as if
    the competitors were independent of y. What is left out is the sum of those values over the other sources, as a
    multiple of their sum over the kept ones: the values are off by a factor, which is much the same for both.
    A second token need not beat the source.
    """
    level = _estimate_level(game, tried)[1 if second else 0]
    deviation = _compute_deviation(game, places, eta=eta)
    log_prior = np.log(prior).astype(np.float32)
    sources = np.repeat(outputs[:, None], 1 + kept, axis=1)
    beyond = np.zeros(len(outputs))
    for block in _iterate_blocks(len(outputs), _SOURCE_BLOCK):
        reach = game.rows[places[block]] @ game.table[tried].T - level - game.half_square[places[block], None]
        value = log_ndtr(reach / deviation[block, None]) + log_prior
        value[outputs[block, None] == tried] = -np.inf
        best = np.argpartition(-value, kept - 1, axis=1)[:, :kept]
        best_value = np.take_along_axis(value, best, axis=1)
        sources[block, 1:] = np.where(np.isfinite(best_value), tried[best], outputs[block, None])
        scale = best_value.max(axis=1, keepdims=True, initial=np.finfo(np.float32).min)
        inside = np.exp(best_value - scale).sum(axis=1)
        beyond[block] = np.maximum(np.exp(value - scale).sum(axis=1) - inside, 0) / np.maximum(inside, 1)
    return sources, beyond


def _estimate_level(
    game: _Game, tried: Ints, *, draws: int = _ROUGH_DRAWS, strongest: int = _STRONGEST
) -> tuple[Floats, Floats]:
    """Mean over draws of the best competitor's score, with the source itself among them and without, (len(tried),)."""
    total, others = np.zeros(len(tried), dtype=np.float32), np.zeros(len(tried), dtype=np.float32)
    draws = min(draws, len(game.noise))
    own = _find_positions(game, tried)
    table = game.table[tried]
    itself = np.einsum("ij,ij->i", table, game.rows[own])
    competes = game.eligible[own] == tried
    for k in range(draws):
        strong = np.sort(_pick_top(game.level[k], strongest))
        score = table @ game.rows[strong].T + game.level[k, strong]
        place = np.minimum(np.searchsorted(strong, own), len(strong) - 1)
        mine = np.flatnonzero(competes & (strong[place] == own))
        score[mine, place[mine]] = -np.inf
        best = score.max(axis=1)
        others += best
        total += np.maximum(best, np.where(competes, itself + game.level[k, own], -np.inf))
    scale = np.float32(draws)
    return total / scale, others / scale


def _find_strongest(
    game: _Game, held: Ints, *, on_progress: Callable[[float], None] | None
) -> tuple[NDArray[np.int32], Floats]:
    """The competitors nearest to the noisy vector of each source and draw: places and scores, (S, K, M)."""
    draws, all_places = len(game.noise), len(game.rows)
    wanted = min(COMPETITORS, all_places)
    table = game.table[held]
    near = np.empty((len(held), min(_NEAR_SOURCE, all_places)), dtype=np.int64)
    near_product = np.empty(near.shape, dtype=np.float32)
    for block in _iterate_blocks(len(held), _SOURCE_BLOCK):
        product = table[block] @ game.rows.T
        near[block] = _pick_top(product - game.half_square, near.shape[1])
        near_product[block] = np.take_along_axis(product, near[block], axis=1)
    names = np.empty((len(held), draws, wanted), dtype=np.int32)
    scores = np.empty((len(held), draws, wanted), dtype=np.float32)
    for k in range(draws):
        strong = _pick_top(game.level[k], _STRONGEST)
        is_strong = np.zeros(all_places, dtype=bool)
        is_strong[strong] = True
        near_score = np.where(is_strong[near], -np.inf, near_product + game.level[k, near]).astype(np.float32)
        rows, level = game.rows[strong].T, game.level[k, strong]
        for block in _iterate_blocks(len(held), _SOURCE_BLOCK):
            score = np.concatenate([table[block] @ rows + level, near_score[block]], axis=1)
            place = np.concatenate([np.broadcast_to(strong, (len(score), len(strong))), near[block]], axis=1)
            best = _pick_top(score, wanted)
            names[block, k] = np.take_along_axis(place, best, axis=1)
            scores[block, k] = np.take_along_axis(score, best, axis=1)
        if on_progress is not None:
            on_progress(0.5 * (k + 1) / draws)
    return names, scores


def _compute_chance_of_first(game: _Game, held: Ints, scores: Floats, *, tuning: float) -> Floats:
    """The probability that `vickrey` puts out the nearest token, of each source and draw, (S, K)."""
    table = game.table[held]
    # A score is half of what a token's squared distance lacks of the noisy vector's squared length.
    square = (table**2).sum(axis=1)[:, None] + 2 * table @ game.noise.T + (game.noise**2).sum(axis=1)
    two = np.sort(scores, axis=2)[:, :, -2:]
    if two.shape[2] < 2:
        return np.ones(square.shape, dtype=np.float32)
    distance = np.sqrt(np.maximum(square[:, :, None] - 2 * two, 0))
    first, second = tuning * distance[:, :, 1], (1 - tuning) * distance[:, :, 0]
    level = first + second <= 0
    found: Floats = np.where(level, 1 - tuning, second / np.where(level, 1, first + second)).astype(np.float32)
    return found


def _integrate(
    game: _Game,
    places: Ints,
    sources: Floats,
    names: NDArray[np.int32],
    scores: Floats,
    *,
    stays: Floats | None = None,
) -> Floats:
    """P(y|x) of each draw for a block of outputs: steps 2 to 4 of the module's docstring.

    Args:
        game: Draws of the noise.
        places: Places of the outputs among the competitors, (B,).
        sources: Rows of the sources, (B, S, d).
        names: Places of the competitors of each source and draw, (B, S, K, M).
        scores: Their scores, (B, S, K, M).
        stays: Probability of the nearest token against the second, (B, S, K); None where it is always the nearest.
    """
    size = len(places)
    outputs, length = game.rows[places], game.reach[places, None]
    unit = np.where(length > 0, game.stretched[places] / np.where(length > 0, length, 1), np.eye(1, outputs.shape[1]))
    unit = unit.astype(np.float32)
    along = unit @ game.stretched.T  # (B, C)
    own_along = along[np.arange(size), places]
    product = np.einsum("bsd,bd->bs", sources, outputs)
    score = product[:, :, None] + game.level[:, places].T[:, None, :]  # (B, S, K)

    offset = (np.arange(size, dtype=np.int32) * np.int32(along.shape[1]))[:, None, None, None]
    slope = own_along[:, None, None, None] - along.ravel().take(names + offset)
    bounds = _bound_moves(scores - score[..., None], slope, names == places[:, None, None, None], two=stays is not None)

    near = _pick_top(
        outputs @ game.rows.T - game.half_square, min(NEIGHBOURS + 1, along.shape[1])
    )  # (B, N), y among them
    near_score = (
        np.einsum("bsd,bnd->bsn", sources, game.rows[near])[:, :, None, :]
        + np.moveaxis(game.level[:, near], 0, 1)[:, None]
    )
    slope = (own_along[:, None] - np.take_along_axis(along, near, axis=1))[:, None, None, :]
    ignored = (near == places[:, None])[:, None, None]
    if stays is not None:
        # One competitor, in both lists, would count as two that beat y.
        ignored = ignored | (near[:, None, None, :, None] == names[..., None, :]).any(axis=4)
    near_bounds = _bound_moves(near_score - score[..., None], slope, ignored, two=stays is not None)

    deviation = np.sqrt(game.variance.astype(np.float64))
    drawn = (unit @ game.noise.T)[:, None, :]

    def chance(lower: Floats, upper: Floats) -> Floats:
        """The normal probability of an interval of moves."""
        low, high = (drawn + lower) / deviation, (drawn + upper) / deviation
        # On either side of 0 the difference of the smaller tails, which do not cancel.
        inside = np.where(low + high > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
        return np.where(high > low, inside, 0).astype(np.float32)

    if stays is None:
        return chance(np.maximum(bounds[0][0], near_bounds[0][0]), np.minimum(bounds[1][0], near_bounds[1][0]))
    (lower, next_lower), (upper, next_upper) = (
        np.sort(np.stack([*one, *other]), axis=0)[order]
        for one, other, order in zip(bounds, near_bounds, (np.s_[:-3:-1], np.s_[:2]), strict=True)
    )
    first = chance(lower, upper)
    either = chance(next_lower, next_upper) - chance(np.maximum(next_lower, upper), np.minimum(next_upper, lower))
    found: Floats = stays * first + (1 - stays) * np.maximum(either - first, 0)
    return found


def _bound_moves(
    gap: Floats, slope: Floats, ignored: NDArray[np.bool_], *, two: bool
) -> tuple[list[Floats], list[Floats]]:
    """The bounds that the competitors on the last axis put on a move τ along u: τ * slope >= gap for each.

    The largest from below and the smallest from above, and with `two` the next of each as well.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = gap / slope
    lower = np.where((slope > 0) & ~ignored, bound, -np.inf)
    upper = np.where((slope < 0) & ~ignored, bound, np.inf)
    if not two:
        return [lower.max(axis=-1)], [upper.min(axis=-1)]
    if lower.shape[-1] == 1:
        return [lower[..., 0], np.full_like(lower[..., 0], -np.inf)], [
            upper[..., 0],
            np.full_like(upper[..., 0], np.inf),
        ]
    # With one competitor there is no second.
    low = np.sort(np.concatenate([np.full_like(lower[..., :1], -np.inf), lower], axis=-1), axis=-1)
    high = np.sort(np.concatenate([upper, np.full_like(upper[..., :1], np.inf)], axis=-1), axis=-1)
    return [low[..., -1], low[..., -2]], [high[..., 0], high[..., 1]]


def _find_positions(game: _Game, ids: Ints) -> Ints:
    """Place of each id among the competitors; a wrong but valid place for an id that is not eligible."""
    return np.minimum(np.searchsorted(game.eligible, ids), len(game.eligible) - 1)


def _pick_top(values: Floats, count: int) -> Ints:
    """Places of the `count` largest values on the last axis, in no order."""
    size = values.shape[-1]
    if count >= size:
        return np.broadcast_to(np.arange(size), values.shape)
    return np.argpartition(values, size - count, axis=-1)[..., size - count :]


def _iterate_blocks(size: int, block: int) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))

"""The privacy-loss distribution against closed forms, integrals, simulation, and twins that must be caught."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from rapt.errors import MechanismError
from rapt.local import privacy_loss
from rapt.local.privacy_loss import (
    PrivacyLoss,
    angle_distribution,
    compose,
    gamma_survival,
    laplace_loss,
    laplace_losses,
    make_cosine_cells,
    make_radius_cells,
    pure_loss,
)

ALPHA = 1e-6
DRAWS = 400_000
SETTINGS = [  # (d, eta, D): the useful range of two backbones, and the corners
    (1, 2.0, 1.5),
    (2, 3.0, 1.0),
    (3, 1.0, 4.0),
    (50, 20.0, 1.0),
    (384, 75.0, 0.97),
    (768, 75.0, 1.0),
]


def true_delta(epsilon, *, dimension, reach):
    """δ(ε) = ∫_ε^a e^(ε-l) P(L > l) dl by Gauss-Legendre in both variables: the oracle for d >= 2."""
    half = (dimension - 1) / 2
    low, high = stats.gamma(dimension).ppf([1e-14, 1 - 1e-14])
    u, u_weights = nodes(low, high, 300)
    # Beyond ε + 40 the factor e^(ε-l) leaves less than 1e-17.
    loss, loss_weights = nodes(epsilon, min(reach, epsilon + 40), 300)
    # L > l  <=>  t < (a² - l² - 2ul) / (2ua), by solving the definition of L for t.
    t = (reach**2 - loss[:, None] ** 2 - 2 * u[None, :] * loss[:, None]) / (2 * u[None, :] * reach)
    survival = special.betainc(half, half, (1 + np.clip(t, -1, 1)) / 2) @ (u_weights * stats.gamma(dimension).pdf(u))
    return float(np.exp(epsilon - loss) * survival @ loss_weights)


def nodes(low, high, count):
    x, weights = np.polynomial.legendre.leggauss(count)
    return low + (high - low) * (1 + x) / 2, weights * (high - low) / 2


def losses(loss):
    return np.minimum((loss.first + np.arange(len(loss.masses))) * loss.step, loss.bound)


def draw_losses(rng, *, dimension, reach, size):
    u = rng.gamma(dimension, size=size)
    along, across = rng.standard_normal(size), rng.chisquare(max(1, dimension - 1), size=size)
    t = along / np.sqrt(along**2 + (across if dimension > 1 else 0))
    return laplace_losses(u, t, reach=reach)


def assert_delta_agrees_with_draws(loss, drawn, *, epsilons):
    """δ within Hoeffding's bound of the mean over draws, at a false-alarm rate of ALPHA for all epsilons together."""
    tolerance = math.sqrt(math.log(2 * len(epsilons) / ALPHA) / (2 * len(drawn)))
    for epsilon in epsilons:
        sampled = np.mean(-np.expm1(np.minimum(0, epsilon - drawn)))
        assert abs(loss.delta(epsilon) - sampled) <= tolerance, f"δ({epsilon}) is off: alpha={ALPHA} n={len(drawn)}"


@pytest.mark.parametrize("reach", [0.1, 1.0, 3.0, 12.0])
def test_one_dimension_is_the_laplace_mechanism_in_closed_form(reach):
    loss = laplace_loss(eta=2.0, distance=reach / 2, dimension=1)
    for epsilon in np.linspace(0, 1.2 * reach, 25):
        closed = max(0.0, 1 - math.exp((epsilon - reach) / 2))
        assert closed - 1e-12 <= loss.delta(epsilon) <= closed + 2e-3 * min(1, reach)


@pytest.mark.parametrize("dimension", [1, 2, 3, 50, 384, 768, 4096])
def test_the_two_laws_are_far_more_exact_than_the_rounding_they_are_given(dimension):
    root = math.sqrt(dimension)
    u = np.square(np.linspace(max(0, root - 4), root + 6, 101))
    assert np.abs(gamma_survival(u, dimension=dimension) - stats.gamma(dimension).sf(u)).max() < 1e-11
    if dimension > 1:
        angle = np.linspace(-1, 1, 101) * min(math.pi / 2, 8 / root)
        half = (dimension - 1) / 2
        exact = special.betainc(half, half, (1 + np.sin(angle)) / 2)
        assert np.abs(angle_distribution(angle, dimension=dimension) - exact).max() < 1e-11


@pytest.mark.parametrize("dimension", [1, 2, 50, 384])
def test_cells_are_stochastically_below_the_law_that_they_stand_for(dimension):
    u, masses = make_radius_cells(dimension)
    assert masses.min() >= 0
    assert math.isclose(masses.sum(), 1)
    assert (np.cumsum(masses)[:-1] >= stats.gamma(dimension).cdf(u[1:]) - 1e-13).all()
    t, masses = make_cosine_cells(dimension)
    assert masses.min() >= 0
    assert math.isclose(masses.sum(), 1)
    if dimension > 1:
        half = (dimension - 1) / 2
        assert (np.cumsum(masses)[:-1] >= special.betainc(half, half, (1 + t[1:]) / 2) - 1e-13).all()


@pytest.mark.parametrize("dimension", [1, 2, 3, 384])
def test_the_loss_falls_in_radius_and_in_cosine_and_stays_within_the_pure_bound(dimension):
    u, t = make_radius_cells(dimension)[0], make_cosine_cells(dimension)[0][::32]
    values = laplace_losses(u[:, None], t[None, :], reach=7.0)
    assert (np.diff(values, axis=0) <= 1e-9).all()
    assert (np.diff(values, axis=1) <= 1e-9).all()
    assert np.abs(values).max() <= 7.0 + 1e-9


def test_the_loss_is_the_log_ratio_of_the_densities():
    rng = np.random.default_rng(1)
    z, shift = rng.standard_normal((100, 5)), np.array([0.3, 0, 0.4, 0, 0])
    length, cosine = np.linalg.norm(z, axis=1), z @ shift / (np.linalg.norm(z, axis=1) * 0.5)
    expected = 3.0 * (np.linalg.norm(z - shift, axis=1) - length)
    np.testing.assert_allclose(laplace_losses(3.0 * length, cosine, reach=1.5), expected, atol=1e-12)


@pytest.mark.parametrize(("dimension", "eta", "distance"), SETTINGS[1:])
def test_delta_is_never_below_the_integral_and_hardly_above_it(dimension, eta, distance):
    reach = eta * distance
    loss = laplace_loss(eta=eta, distance=distance, dimension=dimension)
    for share in (0.0, 0.05, 0.15, 0.3):
        exact = true_delta(share * reach, dimension=dimension, reach=reach)
        assert exact * (1 - 1e-7) <= loss.delta(share * reach) <= exact * 1.05 + 1e-8


def rounded_down(eta, distance, dimension):
    """A broken twin: the right edge of every cell, and losses rounded down to the grid."""
    reach, step = eta * distance, privacy_loss.choose_loss_step(eta * distance)
    (u, u_masses), (t, t_masses) = make_radius_cells(dimension), make_cosine_cells(dimension)
    values = laplace_losses(np.append(u[1:], u[-1])[:, None], np.append(t[1:], 1.0)[None, :], reach=reach)
    index = np.floor(values / step).astype(int)
    masses = np.bincount((index - index.min()).ravel(), weights=np.outer(u_masses, t_masses).ravel())
    return PrivacyLoss(step=step, first=int(index.min()), masses=masses, tail=0.0, bound=reach)


@pytest.mark.parametrize(("dimension", "eta", "distance"), SETTINGS[1:])
def test_a_twin_that_rounds_down_is_caught_understating(dimension, eta, distance):
    twin = rounded_down(eta, distance, dimension)
    exact = true_delta(0.15 * eta * distance, dimension=dimension, reach=eta * distance)
    assert twin.delta(0.15 * eta * distance) < exact * (1 - 1e-7)


@pytest.mark.parametrize("count", [1, 20])
def test_epsilon_is_at_most_half_a_percent_above_the_twin_that_understates(count):
    up, down = laplace_loss(eta=75.0, distance=0.97, dimension=384), rounded_down(75.0, 0.97, 384)
    high, low = compose([(up, count)]).epsilon(1e-5), compose([(down, count)]).epsilon(1e-5)
    assert low < high < low * 1.005


@pytest.mark.parametrize(("dimension", "eta", "distance"), SETTINGS)
def test_delta_agrees_with_simulation(dimension, eta, distance):
    reach = eta * distance
    drawn = draw_losses(np.random.default_rng(7), dimension=dimension, reach=reach, size=DRAWS)
    loss = laplace_loss(eta=eta, distance=distance, dimension=dimension)
    assert_delta_agrees_with_draws(loss, drawn, epsilons=np.linspace(0, 0.5 * reach, 6))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dimension", "eta", "distance"), [SETTINGS[0], SETTINGS[1], SETTINGS[4]])
def test_the_simulation_rejects_a_loss_for_five_percent_less_distance(dimension, eta, distance, seed):
    drawn = draw_losses(np.random.default_rng(seed), dimension=dimension, reach=eta * distance, size=DRAWS)
    wrong = laplace_loss(eta=eta, distance=0.95 * distance, dimension=dimension)
    with pytest.raises(AssertionError, match="is off"):
        assert_delta_agrees_with_draws(wrong, drawn, epsilons=np.linspace(0, 0.5 * eta * distance, 6))


@pytest.mark.parametrize(
    ("eta", "distance", "mean", "deviation"),
    [(75, 1.0, 3.66, 2.70), (100, 1.0, 6.47, 3.59), (125, 1.0, 10.1, 4.47), (175, 1.4, 38.1, 8.51)],
)
def test_mean_and_deviation_at_768_dimensions_are_near_the_gaussian_ones(eta, distance, mean, deviation):
    # The numbers were found by an independent simulation, to three digits.
    loss = laplace_loss(eta=eta, distance=distance, dimension=768)
    found = losses(loss) @ loss.masses
    spread = math.sqrt(losses(loss) ** 2 @ loss.masses - found**2)
    mu = eta * distance / math.sqrt(768)
    assert found == pytest.approx(mean, rel=5e-3)
    assert spread == pytest.approx(deviation, rel=5e-3)
    assert found == pytest.approx(mu**2 / 2, rel=0.03)
    assert spread == pytest.approx(mu, rel=0.04)


def test_epsilon_of_many_tokens_approaches_that_of_the_gaussian_mechanism():
    mu = math.sqrt(20) * 1.0 / math.sqrt(4096)

    def gaussian(epsilon):
        return stats.norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)

    expected = optimize.brentq(lambda epsilon: gaussian(epsilon) - 1e-3, 0, 5)
    loss = compose([(laplace_loss(eta=1.0, distance=1.0, dimension=4096), 20)])
    assert loss.epsilon(1e-3) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("dimension", "eta", "distance"), SETTINGS)
def test_delta_falls_and_vanishes_at_the_pure_bound(dimension, eta, distance):
    loss = laplace_loss(eta=eta, distance=distance, dimension=dimension)
    curve = [loss.delta(epsilon) for epsilon in np.linspace(0, eta * distance, 40)]
    assert (np.diff(curve) <= 0).all()
    assert loss.delta(eta * distance) == 0
    assert compose([(loss, 3)]).delta(3 * eta * distance) == 0
    assert math.isclose(loss.masses.sum() + loss.tail, 1)


@pytest.mark.parametrize(("dimension", "eta", "distance"), SETTINGS)
def test_epsilon_is_the_inverse_of_delta_and_never_below_it(dimension, eta, distance):
    loss = laplace_loss(eta=eta, distance=distance, dimension=dimension)
    wanted = [1e-2, 1e-4, 1e-5, 1e-6]
    found = [loss.epsilon(delta) for delta in wanted]
    assert found == sorted(found)
    assert max(found) <= eta * distance
    for delta, epsilon in zip(wanted, found, strict=True):
        assert loss.delta(epsilon) <= delta
        assert loss.delta(epsilon * (1 - 1e-6)) > delta
    assert loss.epsilon(0.0) == eta * distance
    assert loss.epsilon(1.0) == 0


def test_delta_grows_with_distance_and_falls_with_dimension():
    def epsilon(distance, dimension):
        return laplace_loss(eta=75.0, distance=distance, dimension=dimension).epsilon(1e-5)

    assert epsilon(0.25, 384) < epsilon(0.5, 384) < epsilon(1.0, 384)
    assert epsilon(1.0, 768) < epsilon(1.0, 384) < epsilon(1.0, 50)


def test_composition_of_two_is_the_convolution_by_brute_force():
    step = 2**-7
    one = laplace_loss(eta=3.0, distance=1.0, dimension=5, step=step)
    two = laplace_loss(eta=3.0, distance=0.5, dimension=5, step=step)
    both = compose([(one, 1), (two, 1)])
    sums = losses(one)[:, None] + losses(two)[None, :]
    masses = np.outer(one.masses, two.masses)
    for epsilon in (0.0, 0.5, 1.5, 3.0):
        brute = (masses * -np.expm1(np.minimum(0, epsilon - sums))).sum()
        assert both.delta(epsilon) == pytest.approx(brute, abs=5e-9)
        assert both.delta(epsilon) >= brute - 1e-12


def test_composition_of_many_is_the_repeated_composition_of_two():
    one = laplace_loss(eta=75.0, distance=0.5, dimension=384)
    two = compose([(one, 2)])
    assert compose([(two, 2)]).epsilon(1e-5) == pytest.approx(compose([(one, 4)]).epsilon(1e-5), rel=1e-4)
    assert compose([(one, 1)]) is one


def test_composition_agrees_with_simulation():
    rng = np.random.default_rng(3)
    drawn = sum(draw_losses(rng, dimension=384, reach=20.0, size=DRAWS) for _ in range(5))
    loss = compose([(laplace_loss(eta=20.0, distance=1.0, dimension=384), 5)])
    assert_delta_agrees_with_draws(loss, drawn, epsilons=np.linspace(0, 12, 6))


@pytest.mark.parametrize("reach", [1e-300, 1e-6, 1e4, 1e12])
def test_very_small_and_very_large_settings_stay_within_the_pure_bound(reach):
    loss = laplace_loss(eta=reach, distance=1.0, dimension=64)
    assert len(loss.masses) <= 2 * privacy_loss.LOSS_POINTS + 2
    assert 0 <= loss.epsilon(1e-5) <= reach


def delta_of_coins(epsilon, bound, count):
    """δ of `count` coins of bias e^bound / (1 + e^bound) and their reverses, summed over the binomial law."""
    heads = np.arange(count + 1)
    law = stats.binom(count, 1 / (1 + math.exp(-bound))).pmf(heads)
    return float(law @ -np.expm1(np.minimum(0, epsilon - (2 * heads - count) * bound)))


@pytest.mark.parametrize("bound", [1e-3, 0.7, 5.0, 40.0])
@pytest.mark.parametrize("count", [1, 20])
def test_a_pure_bound_alone_is_a_coin_in_closed_form(bound, count):
    loss, less = (compose([(pure_loss(epsilon=size), count)]) for size in (bound, 0.95 * bound))
    for epsilon in np.linspace(0, 1.2 * count * bound, 25):
        closed = delta_of_coins(epsilon, bound, count)
        assert closed - 1e-8 <= loss.delta(epsilon) <= delta_of_coins(epsilon - count * loss.step, bound, count) + 1e-8
    # The twin: a bound five percent too small is understated somewhere.
    assert less.delta(0.97 * count * bound) < delta_of_coins(0.97 * count * bound, bound, count)


def test_no_pure_bound_is_no_loss_and_one_that_is_none_is_refused():
    assert pure_loss(epsilon=0.0).delta(0.0) == 0.0
    for epsilon in (-1.0, math.nan, math.inf):
        with pytest.raises(MechanismError, match="a pure bound must be finite"):
            pure_loss(epsilon=epsilon)


def test_two_equal_tokens_have_no_loss():
    loss = laplace_loss(eta=75.0, distance=0.0, dimension=384)
    assert (loss.delta(0.0), loss.epsilon(0.0), loss.bound) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("eta", [0.0, -1.0, math.nan, math.inf, 1e308])
def test_an_eta_outside_its_domain_is_refused(eta):
    with pytest.raises(MechanismError, match="eta"):
        laplace_loss(eta=eta, distance=1e3, dimension=384)


@pytest.mark.parametrize(("distance", "dimension"), [(-1.0, 3), (math.nan, 3), (1.0, 0)])
def test_a_distance_or_dimension_outside_its_domain_is_refused(distance, dimension):
    with pytest.raises(MechanismError, match="distance"):
        laplace_loss(eta=1.0, distance=distance, dimension=dimension)


def test_losses_on_different_grids_are_refused():
    one = laplace_loss(eta=1.0, distance=1.0, dimension=3)
    other = laplace_loss(eta=64.0, distance=1.0, dimension=3)
    with pytest.raises(MechanismError, match="one grid"):
        compose([(one, 1), (other, 1)])
    with pytest.raises(MechanismError, match="one grid"):
        compose([])


@pytest.mark.parametrize("delta", [-0.1, 1.1, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(MechanismError, match="delta"):
        laplace_loss(eta=1.0, distance=1.0, dimension=3).epsilon(delta)

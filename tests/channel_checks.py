"""What the tests of several mechanisms ask: that a channel is what is drawn, and that no triple breaks the bound."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from significance import assert_counts

DRAWS = 20_000

# Row 7 is special in both: an input, never an output.
LINE = np.array([-2.0, 3.5, -0.5, 0.0, 0.25, 1.0, 1.5, 0.6])[:, None]
PLANE = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [3, -1], [0.2, 0.1], [-1.5, 2], [0.5, 0.5], [1, 0.05]], dtype=float)
SPECIAL = (7,)
TABLES = {"line": LINE, "plane": PLANE}


def euclidean(table):
    """All distances between the rows, (V, V)."""
    return np.linalg.norm(table[:, None] - table[None], axis=2)


def largest_excess(log_channel, distances, eta):
    """Over all triples, the most by which log P(y|x) - log P(y|x') exceeds eta * d(x, x'); inf if a support differs."""
    worst = -np.inf
    for x in range(len(log_channel)):
        for other in range(len(log_channel)):
            if x == other or np.isinf(distances[x, other]):
                continue
            both = np.isfinite(log_channel[x]) | np.isfinite(log_channel[other])
            with np.errstate(invalid="ignore"):
                loss = (log_channel[x] - log_channel[other])[both].max()
            worst = max(worst, float(loss) - eta * float(distances[x, other]))
    return worst


def count_outputs(mechanism, vocabulary, x, rng, *, draws=DRAWS):
    """How often each eligible token came out for token x, (C,)."""
    out = mechanism.privatize(np.full(draws, x), rng=rng)
    assert np.isin(out, vocabulary.eligible).all()
    return np.bincount(np.searchsorted(vocabulary.eligible, out), minlength=len(vocabulary.eligible))


def assert_drawn_as_stated(mechanism, vocabulary, rng, *, channel=None, draws=DRAWS):
    """The outputs of every token of a small vocabulary follow its closed channel."""
    if channel is None:
        channel = np.exp(mechanism.log_probabilities(np.arange(vocabulary.size)))
    for x in range(vocabulary.size):
        assert_counts(count_outputs(mechanism, vocabulary, x, rng, draws=draws), channel[x])


def noisy_grid(table, *, reach):
    """Points v around a table of one or two columns, (n, d), and how much of space each stands for, (n,).

    Fine among the tokens, where the cells of outputs may be small, and coarser with the distance from them. The same
    for every input, so that an inequality between densities holds for sums as well.
    """
    step, growth = (0.0005, 1.001) if table.shape[1] == 1 else (0.0137, 1.03)
    steps = step * growth ** np.arange(1 + int(np.log1p(reach * (growth - 1) / step) / np.log(growth)))
    outside = np.cumsum(steps)
    points, sizes = [], []
    for column in np.asarray(table, dtype=float).T:
        low, high = column.min() - 0.3, column.max() + 0.3
        core = np.linspace(low, high, 1 + int((high - low) / step))
        edges = np.concatenate([low - outside[::-1], core, high + outside])
        points.append((edges[1:] + edges[:-1]) / 2)
        sizes.append(np.diff(edges))
    grid = np.stack(np.meshgrid(*points, indexing="ij"), axis=-1).reshape(-1, len(points))
    return grid, np.prod(np.stack(np.meshgrid(*sizes, indexing="ij"), axis=-1), axis=-1).ravel()


def grid_channel(table, kernel, *, eta, root=None):
    """P(y|x) = ∫ K(y|v) p(v|x) dv by a sum over a grid, (V, C), for a mechanism that adds noise to an embedding.

    Args:
        table: (V, 1) or (V, 2).
        kernel: Gives K(y|v) for grid points v, (n, C).
        eta: Slope of the noise.
        root: L, for noise of density proportional to exp(-eta * ||L^-1 z||).
    """
    table = np.asarray(table, dtype=float)
    whiten = np.eye(table.shape[1]) if root is None else np.linalg.inv(root)
    grid, sizes = noisy_grid(table, reach=18 / eta / np.linalg.svd(whiten, compute_uv=False).min())
    outputs = kernel(grid)
    found = np.empty((len(table), outputs.shape[1]))
    for x, row in enumerate(table):
        density = np.exp(-eta * np.linalg.norm((grid - row) @ whiten.T, axis=1)) * sizes
        found[x] = density @ outputs / density.sum()
    return found


def distances_to(table, grid, ids):
    """(n, len(ids))."""
    return np.stack([np.linalg.norm(grid - row, axis=1) for row in np.asarray(table, dtype=float)[ids]], axis=1)


def nearest_kernel(table, ids):
    """K of a mechanism that puts out the nearest of `ids`."""

    def kernel(grid):
        nearest = distances_to(table, grid, ids).argmin(axis=1)
        return (nearest[:, None] == np.arange(len(ids))).astype(float)

    return kernel


def power_of_e(epsilon):
    """e^ε from below, as a fraction: the Taylor sum with every term rounded down."""
    total, term, k = Fraction(0), Fraction(1), 0
    while term > Fraction(1, 10**45):
        total += term
        k += 1
        term = Fraction(math.floor(term * Fraction(epsilon) / k * 10**60), 10**60)
    return total

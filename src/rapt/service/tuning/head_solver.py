"""A regularized logistic regression, solved: its lowest loss, and the penalty that records left out ask for.

A small head over true labels is solved by Newton's steps, each of which takes the whole curvature; others by L-BFGS.
The penalty is chosen by cross-validation over the records that it is solved on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rapt.service.tuning.result import TuningCancelled
from rapt.service.tuning.tasks import label_losses
from rapt.training import avoid_compiler
from rapt.wire.manifest import LabelPrivacy

# Penalties that are tried, on states scaled to numbers of size 1: λ in the mean loss + λ |W|².
PENALTIES: Final = tuple(10.0 ** (half / 2) for half in range(-10, 3))
FOLDS: Final = 5
_ITERATIONS: Final = 100
# Newton's steps cost states · numbers² of a head; up to here they took a half to a quarter of the time of L-BFGS, and
# with 20,000 states twice as much.
_MOST_NUMBERS: Final = 64
_MOST_BY_NEWTON: Final = 2**20
_LEAST_SLOPE: Final = 1e-10
_LEAST_LENGTH: Final = 1e-6
_LBFGS: Final = avoid_compiler(torch.optim.LBFGS)
# Records that are dealt to folds at once.
_DEALT: Final = 65_536
Whole = NDArray[np.integer[Any]]


def solve_head(
    states: Tensor, counts: Tensor, *, penalty: float, label_privacy: LabelPrivacy | None
) -> tuple[Tensor, Tensor]:
    """Return W (C, h) and b (C,) of the lowest mean loss + λ |W s|², s the root mean square of a state's numbers.

    Args:
        states: States that the head reads, (U, h), float64.
        counts: Number of times that each state came with each label, (U, C), float64.
        penalty: Weight λ of the penalty.
        label_privacy: Mechanism that randomized the labels; None for true ones.
    """
    total = counts.sum()
    scale = ((counts.sum(dim=1) @ states.square()).sum() / (total * states.shape[1])).sqrt().clamp(min=1e-12)
    scaled = states / scale
    numbers = counts.shape[1] * (states.shape[1] + 1)
    if label_privacy is None and numbers <= _MOST_NUMBERS and len(states) * numbers**2 <= _MOST_BY_NEWTON:
        weight, bias = _minimize_by_newton(scaled, counts / total, penalty=penalty)
        return weight / scale, bias
    rows, labels = counts.nonzero(as_tuple=True)
    shares = counts[rows, labels] / total

    def fit(weight: Tensor, bias: Tensor) -> Tensor:
        loss = label_losses((scaled @ weight.T + bias)[rows], labels, label_privacy=label_privacy) @ shares
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say what it returns
        return loss.detach()

    weight, bias = minimize_head(fit, shape=(counts.shape[1], states.shape[1]), penalty=penalty)
    return weight / scale, bias


def _minimize_by_newton(states: Tensor, shares: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """Return W and b of the lowest mean cross-entropy + λ |W|²: a few steps, each of which takes the whole curvature.

    Args:
        states: What the head reads, (U, h), float64.
        shares: Share of each state with each label, (U, C), which sum to 1.
        penalty: Weight λ of the penalty.
    """
    classes, width = shares.shape[1], states.shape[1] + 1
    read = torch.cat([states, states.new_ones(len(states), 1)], dim=1)
    held = torch.full((width,), 2 * penalty, dtype=torch.float64)
    held[-1] = 0.0
    often = shares.sum(dim=1, keepdim=True)

    def loss(head: Tensor) -> Tensor:
        return -(shares * (read @ head.T).log_softmax(dim=1)).sum() + (held * head.square()).sum() / 2

    head = torch.zeros(classes, width, dtype=torch.float64)
    value = loss(head)
    for _ in range(_ITERATIONS):
        chances = (read @ head.T).softmax(dim=1)
        slope = (often * chances - shares).T @ read + held * head
        if slope.abs().max() < _LEAST_SLOPE:
            break
        curvature = torch.zeros(classes, width, classes, width, dtype=torch.float64)
        for one in range(classes):
            kept = -often * chances * chances[:, one : one + 1]
            kept[:, one] += often[:, 0] * chances[:, one]
            moved = (kept[:, :, None] * read[:, None, :]).flatten(start_dim=1)
            curvature[one] = (read.T @ moved).reshape(width, classes, width)
            curvature[one, :, one] += held.diag()
        curvature[:, -1, :, -1] += 1 / classes  # a number that is added to every bias changes nothing
        flat = curvature.reshape(classes * width, classes * width)
        step = torch.linalg.solve(flat, slope.flatten()).reshape(classes, width)
        # Far from the optimum a whole step may go too far.
        expected, length = float((slope * step).sum()), 1.0
        while length > _LEAST_LENGTH and not (lower := loss(head - length * step)) <= value - 1e-4 * length * expected:
            length /= 2
        if length <= _LEAST_LENGTH:
            break  # nothing is left to gain beyond rounding
        head, value = head - length * step, lower
    return head[:, :-1].contiguous(), head[:, -1].contiguous()


def minimize_head(
    fit: Callable[[Tensor, Tensor], Tensor], *, shape: tuple[int, int], penalty: float
) -> tuple[Tensor, Tensor]:
    """Return W and b of the lowest fit + λ |W|², where `fit` returns the mean loss and adds its gradient to both."""
    weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(shape[0], dtype=torch.float64, requires_grad=True)
    optimizer = _LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        held = penalty * weight.square().sum()
        held.backward()  # type: ignore[no-untyped-call]  # as above
        return held.detach() + fit(weight, bias)

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # nor here
    return weight.detach(), bias.detach()


def tally_labels(places: Whole, labels: Whole, shape: tuple[int, int]) -> Tensor:
    """Return how often each state, by its place, came with each label, (U, C), float64."""
    counts = np.zeros(shape[0] * shape[1], dtype=np.int64)
    for start in range(0, len(places), _DEALT):
        some = slice(start, start + _DEALT)
        counts += np.bincount(places[some].astype(np.int64) * shape[1] + labels[some], minlength=len(counts))
    return torch.from_numpy(counts.reshape(shape)).double()


def choose_penalty(
    states: Tensor,
    places: Whole,
    labels: Whole,
    classes: int,
    *,
    private: LabelPrivacy | None,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Return the penalty of the lowest loss on records that were left out, summed over the folds.

    Args:
        states: Different states, (U, h), float64.
        places: Place of each record's state, (n,).
        labels: Label of each record, (n,).
        classes: Number C of classes.
        private: Mechanism that randomized the labels; None for true ones.
        seed: Seed that cuts the folds.
        should_stop: Asked before each penalty that is tried.

    Raises:
        TuningCancelled: `should_stop` said yes.
    """
    rng, shape = np.random.default_rng(seed), (len(states), classes)
    tallies = [torch.zeros(shape, dtype=torch.float64) for _ in range(FOLDS)]
    for start in range(0, len(labels), _DEALT):
        some, tags = places[start : start + _DEALT], labels[start : start + _DEALT]
        folds = rng.permutation(len(tags)) % FOLDS
        for fold, tally in enumerate(tallies):
            tally += tally_labels(some[folds == fold], tags[folds == fold], shape)
    everything = sum(tallies[1:], tallies[0])

    def judge(penalty: float) -> float:
        loss = 0.0
        for left_out in tallies:
            if not left_out.any():
                continue
            weight, bias = solve_head(states, everything - left_out, penalty=penalty, label_privacy=private)
            rows, found = left_out.nonzero(as_tuple=True)
            logits = states[rows] @ weight.T + bias
            loss += float(label_losses(logits, found, label_privacy=private) @ left_out[rows, found])
        return loss

    return find_lowest_penalty(judge, should_stop=should_stop)


def find_lowest_penalty(judge: Callable[[float], float], *, should_stop: Callable[[], bool]) -> float:
    """Return the penalty of the lowest loss, of equal ones the strongest."""
    best: tuple[float, float] = (math.inf, PENALTIES[-1])
    for penalty in reversed(PENALTIES):
        if should_stop():
            raise TuningCancelled("tuning was asked to stop; start a new job")
        best = min(best, (judge(penalty), penalty), key=lambda item: item[0])
    return best[1]

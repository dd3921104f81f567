"""The loop that trains networks: it goes down, stops at a loss that is not finite, and pads little."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from rapt.errors import TuningError
from rapt.training import ParameterGroup, Trainer, avoid_compiler, back_propagate, batch_by_length, scale_rate


def test_steps_go_down_and_are_counted():
    weight = nn.Parameter(torch.ones(3))
    trainer = Trainer([ParameterGroup({"weight": weight}, 0.1)])
    seen = [
        (trainer.steps, losses["loss"])
        for losses in trainer.follow(
            range(40),
            lambda batch: back_propagate(weight.square().sum()),
            rate=lambda step: scale_rate(step, 40, rise=0.1),
        )
    ]
    assert [step for step, _ in seen] == list(range(1, 41))
    assert seen[-1][1] < 0.1 * seen[0][1]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.LBFGS])
def test_a_step_does_not_import_the_compiler_of_torch(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    weight = nn.Parameter(torch.ones(3))
    optimizer = avoid_compiler(kind)([weight], lr=0.1)

    def descend():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(descend) == 3
    assert descend() < 3


@pytest.mark.parametrize(
    "loss", [lambda weight: weight.sum() * float("nan"), lambda weight: (weight - 1).abs().sqrt().sum()]
)
def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_parameters(loss):
    weight = nn.Parameter(torch.ones(3))
    trainer = Trainer([ParameterGroup({"weight": weight}, 0.1)], way_out="leave the attack out")
    with pytest.raises(TuningError, match="got nan or infinity after step=0; leave the attack out"):
        list(trainer.follow([0], lambda batch: back_propagate(loss(weight)), rate=lambda step: 1.0))
    assert torch.equal(weight, torch.ones(3))


def test_long_gradients_are_clipped_and_rates_are_those_of_their_group():
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [ParameterGroup({"slow": slow}, 0.001, 0.0), ParameterGroup({"fast": fast}, 0.1, 0.0)]
    trainer = Trainer([*groups, ParameterGroup({}, 1.0)])
    list(trainer.follow([0], lambda batch: back_propagate(1e6 * (slow + fast).sum()), rate=lambda step: 0.5))
    assert slow.grad.norm() < 1.0
    # The first step of AdamW is as long as the rate, whatever the gradient.
    assert slow.item() == pytest.approx(-0.0005, rel=1e-3)
    assert fast.item() == pytest.approx(-0.05, rel=1e-3)


def test_a_trainer_that_takes_a_state_goes_on_as_the_one_that_gave_it():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    first, second = (Trainer([ParameterGroup({"weight": weight}, 0.1)]) for weight in weights)

    def steps(trainer, weight, count):
        follow = trainer.follow(
            range(count), lambda batch: back_propagate(weight.exp().sum()), rate=lambda step: 1 / step
        )
        return [losses["loss"] for losses in follow]

    steps(first, weights[0], 3)
    with torch.no_grad():
        weights[1].copy_(weights[0])
    second.restore(first.state(), steps=first.steps)
    assert steps(second, weights[1], 4) == steps(first, weights[0], 4)
    assert torch.equal(*weights)


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [scale_rate(step, 100, rise=0.1) for step in range(1, 101)]
    assert max(rates) == rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(1 / 90)


def test_a_pass_has_every_text_once_and_texts_of_like_lengths_together(rng):
    lengths = rng.integers(1, 60, size=500)
    drawn = list(batch_by_length(lengths, size=8, permute=rng.permutation, sorted_together=16))
    assert sorted(np.concatenate(drawn).tolist()) == list(range(500))
    padded = sum(len(places) * lengths[places].max() for places in drawn)
    assert padded < 1.25 * lengths.sum()
    shuffled = rng.permutation(500)
    blind = sum(8 * lengths[shuffled[start : start + 8]].max() for start in range(0, 496, 8))
    assert blind > 1.5 * lengths.sum()

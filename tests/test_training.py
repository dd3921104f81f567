"""The loop that trains networks: it goes down, stops at a loss that is not finite, and pads little."""

import numpy as np
import pytest
import torch
from torch import nn

from rapt.errors import TuningError
from rapt.training import Trainer, batch_by_length, scale_rate


def test_steps_go_down_and_are_counted():
    weight = nn.Parameter(torch.ones(3))
    seen = []
    Trainer({0.1: [weight]}).follow(
        range(40),
        lambda batch: weight.square().sum(),
        rate=lambda step: scale_rate(step, 40, rise=0.1),
        on_step=lambda step, value: seen.append((step, value)),
    )
    assert [step for step, _ in seen] == list(range(1, 41))
    assert seen[-1][1] < 0.1 * seen[0][1]


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_parameters():
    weight = nn.Parameter(torch.ones(3))
    trainer = Trainer({0.1: [weight]}, way_out="leave the attack out")
    with pytest.raises(TuningError, match="got another at step=1; leave the attack out"):
        trainer.take(weight.sum() * float("nan"), rate=1.0)
    assert torch.equal(weight, torch.ones(3))


def test_long_gradients_are_clipped_and_rates_are_those_of_their_group():
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    Trainer({0.001: [slow], 0.1: [fast]}, weight_decay=0.0).take(1e6 * (slow + fast).sum(), rate=0.5)
    # The first step of AdamW is as long as the rate, whatever the gradient.
    assert slow.item() == pytest.approx(-0.0005, rel=1e-3)
    assert fast.item() == pytest.approx(-0.05, rel=1e-3)


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [scale_rate(step, 100, rise=0.1) for step in range(1, 101)]
    assert max(rates) == rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_a_pass_has_every_text_once_and_texts_of_like_lengths_together(rng):
    lengths = rng.integers(1, 60, size=500)
    drawn = list(batch_by_length(lengths, size=8, sorted_together=16, rng=rng))
    assert sorted(np.concatenate(drawn).tolist()) == list(range(500))
    padded = sum(len(places) * lengths[places].max() for places in drawn)
    assert padded < 1.25 * lengths.sum()
    shuffled = rng.permutation(500)
    blind = sum(8 * lengths[shuffled[start : start + 8]].max() for start in range(0, 496, 8))
    assert blind > 1.5 * lengths.sum()

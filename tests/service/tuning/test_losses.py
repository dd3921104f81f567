import math
from dataclasses import fields

import torch

from closeness import assert_close
from rapt.service.backbone.layout import Layout
from rapt.service.tuning.losses import (
    ReconstructionHead,
    find_plain_token_targets,
    reconstruction_loss,
    select_plain_states,
)
from rapt.wire.manifest import PlainTokens
from rapt.wire.privatized_file import PrivatizedRecord


def hand_made_head():
    """h = 2, c = 1, |T| = 3: logits are (0, s, 2s) with s = g_1 + g_2."""
    head = ReconstructionHead(hidden_size=2, head_size=1, classes=3, generator=torch.Generator())
    with torch.no_grad():
        head.w2.weight.copy_(torch.tensor([[1.0, 1.0]]))
        head.w1.weight.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
    return head


STATES = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])  # one record, two plain tokens: s = 1 and s = 0
TARGETS = torch.tensor([[2, 1]])
BY_HAND = (-math.log(math.exp(2) / (1 + math.exp(1) + math.exp(2))) + math.log(3)) / 2


def test_the_loss_is_the_case_worked_by_hand():
    assert_close(reconstruction_loss(STATES, TARGETS, hand_made_head()), torch.tensor(BY_HAND), layers=3, width=3)


def test_a_softmax_before_the_loss_would_be_seen():
    # A public re-implementation feeds softmax outputs to the cross-entropy: its value must not pass for ours.
    head = hand_made_head()
    doubled = torch.nn.functional.cross_entropy(head(STATES).softmax(-1).flatten(0, 1), TARGETS.flatten())
    assert abs(doubled.item() - BY_HAND) > 0.05


def test_a_sum_over_tokens_and_batch_would_be_seen():
    twice = reconstruction_loss(STATES.repeat(2, 1, 1), TARGETS.repeat(2, 1), hand_made_head())
    assert_close(twice, torch.tensor(BY_HAND), layers=3, width=3)


def test_the_head_has_no_bias_and_rank_at_most_c():
    head = ReconstructionHead(hidden_size=8, head_size=3, classes=20, generator=torch.Generator().manual_seed(0))
    assert head(torch.zeros(8)).abs().max() == 0
    assert torch.linalg.matrix_rank(head.w1.weight @ head.w2.weight) == 3


def test_states_are_taken_at_each_rows_own_plain_tokens():
    states = torch.arange(10.0).reshape(2, 5, 1)
    others = dict.fromkeys((field.name for field in fields(Layout)), torch.empty(0))
    layout = Layout(**others | {"plain_start": torch.tensor([1, 3])})
    assert select_plain_states(states, layout, count=2).flatten().tolist() == [1, 2, 8, 9]


def test_targets_are_places_in_the_pool():
    fresh = PlainTokens(count=2, pool=(70, 50, 60), fixed=None)
    records = [PrivatizedRecord(token_ids=(1,), privatized_plain_tokens=(9, 9), plain_tokens=(60, 70))]
    assert find_plain_token_targets(records, fresh, device=torch.device("cpu")).tolist() == [[2, 0]]
    once = PlainTokens(count=2, pool=(70, 50, 60), fixed=(50, 50))
    records = [PrivatizedRecord(token_ids=(1,), privatized_plain_tokens=(9, 9))] * 2
    assert find_plain_token_targets(records, once, device=torch.device("cpu")).tolist() == [[1, 1]] * 2

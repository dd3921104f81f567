import pytest
import torch

from closeness import assert_close
from rapt.service.answers import row_heads
from rapt.service.answers.row_heads import class_probabilities

WIDTH = 16


def batch_of(seed, *, classes=(2, 5, 1, 40), rows=23):
    generator = torch.Generator().manual_seed(seed)
    adapters = [(torch.randn(c, WIDTH, generator=generator), torch.randn(c, generator=generator)) for c in classes]
    chosen = torch.randint(len(adapters), (rows,), generator=generator).tolist()
    return torch.randn(rows, WIDTH, generator=generator), [adapters[index] for index in chosen]


def one_by_one(pooled, heads):
    return [torch.softmax(weight @ vector + bias, dim=0) for vector, (weight, bias) in zip(pooled, heads, strict=True)]


def same(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert_close(torch.tensor(row), other, width=WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_heads_of_mixed_sizes_answer_as_one_by_one(seed):
    pooled, heads = batch_of(seed)
    same(class_probabilities(pooled, heads), one_by_one(pooled, heads))


@pytest.mark.parametrize("seed", range(5))
def test_one_head_for_every_row_would_be_caught(seed):
    pooled, heads = batch_of(seed, classes=(3, 3, 3))
    with pytest.raises(AssertionError):
        same(class_probabilities(pooled, [heads[0]] * len(heads)), one_by_one(pooled, heads))


def test_many_classes_are_computed_in_slices(monkeypatch):
    monkeypatch.setattr(row_heads, "_SLICE", 3 * 40 * WIDTH)
    pooled, heads = batch_of(0)
    same(class_probabilities(pooled, heads), one_by_one(pooled, heads))

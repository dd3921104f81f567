"""The bound on rounding holds where only the order of sums differs, and fails what is a little wrong."""

import pytest
import torch
from torch import nn

from closeness import assert_close

LAYERS, WIDTH = 6, 64


def states(seed, *, dtype=torch.float32, order=None, tanh="none"):
    """A stack of layers, with its sums in an order of choice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, WIDTH, generator=generator).to(dtype)
    for _ in range(LAYERS):
        weight = torch.randn(WIDTH, WIDTH, generator=generator).to(dtype) / WIDTH**0.5
        order = torch.arange(WIDTH) if order is None else order
        inner = (x[:, order, None] * weight[order]).cumsum(dim=1)[:, -1]
        x = nn.functional.layer_norm(x + nn.functional.gelu(inner, approximate=tanh), (WIDTH,))
    return x


@pytest.mark.parametrize("seed", range(5))
def test_another_order_of_the_sums_is_within_the_bound_and_another_gelu_is_not(seed):
    exact = states(seed, dtype=torch.float64).float()
    backwards = torch.arange(WIDTH).flip(0)
    for found in (states(seed), states(seed, order=backwards)):
        assert_close(found, exact, layers=LAYERS, width=WIDTH)
    with pytest.raises(AssertionError, match="where rounding explains"):
        assert_close(states(seed, tanh="tanh"), exact, layers=LAYERS, width=WIDTH)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_bound_grows_with_the_numbers(scale):
    exact = scale * states(0, dtype=torch.float64).float()
    assert_close(scale * states(0), exact, layers=LAYERS, width=WIDTH)
    with pytest.raises(AssertionError):
        assert_close(1.001 * exact, exact, layers=LAYERS, width=WIDTH)


def test_what_is_no_number_or_of_another_shape_is_not_close():
    with pytest.raises(AssertionError):
        assert_close([float("nan")], [1.0])
    with pytest.raises(AssertionError):
        assert_close([1.0], [1.0, 1.0])
    assert_close([0.0], [0.0])

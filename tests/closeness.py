"""How far apart two computations of the same number may be: it follows from their precision and size.

Every processor adds up in an order of its own. A sum of n products of rounded numbers is off by about eps sqrt(n) of
its size (Higham 2002, Sec. 2.8), and each layer hands on what it got and adds as much. So two ways of one computation
are within MARGIN eps layers sqrt(width) of the largest number in it; an absolute bound holds on some machines only.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from rapt.service.backbone.backbone import Backbone

# Largest seen, over all tests and the instruction sets in CONTRIBUTING.md: 1.2. A GELU by its tanh form is off by 300.
MARGIN: Final = 12.0


def assert_close(
    found: Any,
    expected: Any,
    *,
    of: Backbone | None = None,
    layers: int = 1,
    width: int = 1,
    steps: int = 1,
    dtype: torch.dtype | None = None,
) -> None:
    """Two ways to compute the same numbers agree.

    Args:
        found: Numbers, a tensor or nested lists of floats that were computed in float32.
        expected: The same in another way.
        of: What computed them; its layers, its head and its width.
        layers: Without it, how many sums each number went through, one after the other.
        width: Without it, how many products are in the largest of them.
        steps: How often that was done, each time with what came out of the last.
        dtype: What was computed in, where it is not what the expected numbers are in.
    """
    ours, theirs = (_tensor(numbers) for numbers in (found, expected))
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} numbers, and not {tuple(theirs.shape)}"
    if of is not None:
        layers, width = len(of.sites.attention) + 1, of.hidden_size
    eps = torch.finfo(dtype or theirs.dtype).eps
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    bound = MARGIN * eps * layers * steps * math.sqrt(width) * scale
    apart = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
    assert apart <= bound, f"{apart:.3g} apart, where rounding explains {bound:.3g}"


def _tensor(numbers: Any) -> torch.Tensor:
    return numbers.detach() if isinstance(numbers, torch.Tensor) else torch.tensor(numbers, dtype=torch.float32)

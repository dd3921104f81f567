"""The precision of a backbone: as asked for, or what is measured to be faster here."""

from __future__ import annotations

import functools
import math
import time
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def chosen_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What a backbone computes in on a device."""
    if precision == "auto":
        faster = device.type == "cuda" or _bfloat16_speedup() > 1.2
        return torch.bfloat16 if faster else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@functools.cache
def _bfloat16_speedup() -> float:
    """How much faster this processor multiplies in bfloat16, measured in a few milliseconds.

    What the processor claims is no guide: the same instructions run at three times the speed of float32 on one machine
    and at half of it on another.
    """
    factors = {
        dtype: (torch.ones(512, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(factors, math.inf)
    # By turns and the best of many: whoever else uses the machine in these milliseconds must not choose the precision.
    for _ in range(20):
        for dtype, (left, right) in factors.items():
            start = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]

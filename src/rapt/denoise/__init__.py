"""THE PROVIDER'S WORKSHOP: makes backbones that expect noise or read codes, of public text that it privatizes.

No user's text comes near it, so it spends nobody's budget. What it learns helps a service to understand privatized
text, and it would help an attacker as much: `rapt audit` has attackers who learn in the same way.

`denoise_model` and `train_reader` do what the commands `rapt denoise` and `rapt reader` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapt.lazy_names import load_lazily

if TYPE_CHECKING:
    from rapt.denoise.plan import WarmUpPlan as WarmUpPlan
    from rapt.denoise.reader_training import ReaderPlan as ReaderPlan
    from rapt.denoise.reader_training import train_reader as train_reader
    from rapt.denoise.warm_up import DenoisedBackbone as DenoisedBackbone
    from rapt.denoise.warm_up import denoise_model as denoise_model

_READER, _WARM_UP = "rapt.denoise.reader_training", "rapt.denoise.warm_up"
__getattr__, __dir__ = load_lazily(
    __name__,
    {
        "DenoisedBackbone": _WARM_UP,
        "ReaderPlan": _READER,
        "WarmUpPlan": "rapt.denoise.plan",
        "denoise_model": _WARM_UP,
        "train_reader": _READER,
    },
)

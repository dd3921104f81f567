"""THE PROVIDER'S WORKSHOP: makes a backbone that expects noise, out of public text that it privatizes itself.

No user's text comes near it, so it spends nobody's budget. What it learns helps a service to understand privatized
text, and it would help an attacker as much: `rapt audit` has attackers who learn in the same way.

`denoise_model` does what the command `rapt denoise` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapt.lazy_names import load_lazily

if TYPE_CHECKING:
    from rapt.denoise.plan import WarmUpPlan as WarmUpPlan
    from rapt.denoise.warm_up import DenoisedBackbone as DenoisedBackbone
    from rapt.denoise.warm_up import denoise_model as denoise_model

_WARM_UP = "rapt.denoise.warm_up"
__getattr__, __dir__ = load_lazily(
    __name__, {"DenoisedBackbone": _WARM_UP, "WarmUpPlan": "rapt.denoise.plan", "denoise_model": _WARM_UP}
)

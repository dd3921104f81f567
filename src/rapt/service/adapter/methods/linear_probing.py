"""Linear probing: nothing is added to the backbone, and the task head alone is trained (Alain & Bengio 2016).

What a prompt, a prefix or LoRA gains over it is what they are worth. It costs the least: a step has no backward pass
through the backbone.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from rapt.service.adapter.methods.method import Form, Method
from rapt.service.backbone.steering import NOTHING, Tuned


class LinearProbing(nn.Module):
    """A module that has no parameters and adds nothing to the backbone."""

    def forward(self) -> Tuned:
        """Return `NOTHING`: a forward pass stays as it is."""
        return NOTHING


METHOD: Final = Method(
    title="head alone",
    make=lambda backbone, settings, labels, generator: LinearProbing(),
    parameters=lambda backbone, settings: 0,
    # PEFT has no adapter that adds nothing.
    form=Form(
        shapes=lambda card, backbone, found: {},
        to_tensors=lambda tuned: {},
        from_tensors=lambda tensors, card, backbone: NOTHING,
        peft=lambda card, tuned: None,
    ),
    learning_rate=0.01,  # the rate of the task head, which is all there is
    tasks=("classification",),
    reconstructs=False,
)

"""Gradient checkpointing of a frozen backbone: of each layer only what goes into it is kept for the gradient.

The rest is computed again on the way back, layer by layer (Chen et al. 2016). A frozen model draws nothing, so what is
computed again has the same bits, and so has the gradient; it costs one more forward pass.

As with steering, it is a property of the calls of one block in one thread, not a mode of the model, which others use at
the same time. `transformers`' own switch is such a mode, and works only in a model whose dropout is on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rapt.service.backbone.steering import current_steering, steered

T = TypeVar("T")

_recomputes: ContextVar[bool] = ContextVar("recomputes", default=False)


@contextmanager
def layers_recomputed(on: bool) -> Iterator[None]:
    """Keep only the inputs of layers, for the gradient of the model calls of this block in this thread."""
    token = _recomputes.set(on)
    try:
        yield
    finally:
        _recomputes.reset(token)


def run_layer(layer: Callable[..., T], /, *inputs: object, **others: object) -> T:
    """Return what a layer makes of its inputs, keeping those alone where `layers_recomputed` asks for it."""
    if not (_recomputes.get() and torch.is_grad_enabled()):
        return layer(*inputs, **others)
    steering = current_steering()  # the way back may run in another thread, as on a GPU, and after the block

    def run_again(*inputs: object) -> T:
        with steered(steering):
            return layer(*inputs, **others)

    # No state of a generator is kept, because a frozen model draws nothing.
    found: T = checkpoint(run_again, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name: the members of its outermost `ModuleList`s, in each family that `laws` admits."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{layer}.") for layer in found):
            found |= {f"{name}.{place}": layer for place, layer in enumerate(module)}
    return found


def prepare_layers(model: nn.Module) -> tuple[str, ...]:
    """Let the layers of a model be recomputed; their names."""
    layers = find_layers(model)
    for layer in layers.values():
        layer.forward = functools.partial(run_layer, layer.forward)
    return tuple(layers)

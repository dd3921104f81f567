"""What one forward pass does that its model does not: additions of adapters row by row, and layers computed again.

A method may add three kinds of parts: vectors at the place of word embeddings, keys and values at the attention layers,
low-rank changes of linear layers. An adapter is a `Tuned`; a batch of them, one a row, is a `Steering`. Rows of one
batch may carry different adapters, of different sizes and methods. These are values only, nothing of a model is
touched.

*Gradient checkpointing*: of each layer only what goes into it is kept for the gradient. The rest is computed again on
the way back, layer by layer (Chen et al. 2016). A frozen model draws nothing, so what is computed again has the same
bits, and so has the gradient; it costs one more forward pass.

Both are properties of the calls of one block in one thread, not modes of the model: they live in context variables,
which every thread has for itself, so a job and a request can use one model at the same time. `transformers`' own switch
for gradient checkpointing is such a mode, and works only in a model whose dropout is on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The change `b a` of one linear layer's weight (Hu et al. 2021, Sec. 4.1): a is (r, in), b is (out, r), scaled."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class Tuned:
    """The parts of one adapter. In training they carry gradients.

    Attributes:
        prompt: Soft prompt at the place of word embeddings, (P, h), or None.
        prefix: Keys and values before those of every attention site, (S, 2, H, P, d): S sites, H key heads of width d.
        lora: Changed linear layers by name; the others are left as they are.
    """

    prompt: Tensor | None = None
    prefix: Tensor | None = None
    lora: Mapping[str, LoraPair] = field(default_factory=dict)

    @property
    def prompt_length(self) -> int:
        """P of the soft prompt: positions that it takes in the sequence. A prefix takes none."""
        return (
            0 if self.prompt is None else self.prompt.shape[0]
        )  # `len` of a tensor takes long, and this is asked often

    @property
    def prefix_length(self) -> int:
        """P of the prefix: what every attention layer looks at besides the sequence."""
        return 0 if self.prefix is None else self.prefix.shape[3]

    @property
    def highest_rank(self) -> int:
        """The highest rank among its low-rank changes; 0 without any."""
        return max((pair.a.shape[0] for pair in self.lora.values()), default=0)


NOTHING: Final = Tuned()


@dataclass(frozen=True, eq=False)
class LoraRows:
    """Low-rank changes of one layer for a batch: n different pairs, padded to one rank, and the pair of each row.

    Attributes:
        a: (n, r, in).
        b: (n, out, r).
        pair_of_row: (B,), or None when every row has pair 0.
    """

    a: Tensor
    b: Tensor
    pair_of_row: Tensor | None

    def change(self, inputs: Tensor) -> Tensor:
        """Return what is added to the layer's output, (B, T, in) -> (B, T, out), in the dtype of the inputs."""
        a, b = self.a.to(inputs), self.b.to(inputs)  # their type, and the device of their layer
        if self.pair_of_row is None:
            return (inputs @ a[0].T) @ b[0].T
        return (inputs @ a[self.pair_of_row].mT) @ b[self.pair_of_row].mT


@dataclass(frozen=True, eq=False)
class Steering:
    """Additions of the B rows of a batch to a forward pass.

    Attributes:
        prompts: Soft prompts of all rows, one after the other, (sum of prompt_lengths, h); None without any.
        prompt_lengths: P of each row.
        prefix: (S, 2, B, H, P, d), left-padded to the longest P; None without any.
        prefix_mask: True where a prefix position is real, (B, P); None when all are.
        lora: Low-rank changes by name of the linear layer.
    """

    prompts: Tensor | None
    prompt_lengths: tuple[int, ...]
    prefix: Tensor | None
    prefix_mask: Tensor | None
    lora: Mapping[str, LoraRows]


_current: ContextVar[Steering | None] = ContextVar("steering", default=None)


@contextmanager
def apply_steering(steering: Steering | None) -> Iterator[None]:
    """Give the model calls in this block, in this thread, what `steering` holds inside the model.

    Soft prompts are not among it: they are part of the input vectors.
    """
    token = _current.set(steering)
    try:
        yield
    finally:
        _current.reset(token)


def get_steering() -> Steering | None:
    """Return the steering of the model calls of this thread now."""
    return _current.get()


def steer(rows: Sequence[Tuned]) -> Steering:
    """The steering of a batch whose row i carries `rows[i]`; gradients flow to every part."""
    same = all(row is rows[0] for row in rows)
    prefix, prefix_mask = _join_prefixes(rows, same=same)
    prompts = [row.prompt for row in rows if row.prompt is not None]
    return Steering(
        prompts=None if not prompts else prompts[0].repeat(len(rows), 1) if same else torch.cat(prompts),
        prompt_lengths=tuple(row.prompt_length for row in rows),
        prefix=prefix,
        prefix_mask=prefix_mask,
        lora=_join_lora_of_one(rows[0]) if same else _join_lora_of_many(rows),
    )


def _join_prefixes(rows: Sequence[Tuned], *, same: bool) -> tuple[Tensor | None, Tensor | None]:
    first = next((row.prefix for row in rows if row.prefix is not None), None)
    if first is None:
        return None, None
    if same:
        return first[:, :, None].expand(-1, -1, len(rows), -1, -1, -1), None
    lengths = [0 if row.prefix is None else row.prefix.shape[3] for row in rows]
    longest = max(lengths)
    padded = []
    for row, length in zip(rows, lengths, strict=True):
        own = first[:, :, :, :0] if row.prefix is None else row.prefix
        padded.append(torch.nn.functional.pad(own, (0, 0, longest - length, 0)))
    mask = torch.arange(longest)[None, :] >= longest - torch.tensor(lengths)[:, None]
    return torch.stack(padded, dim=2), None if bool(mask.all()) else mask.to(first.device)


def _join_lora_of_one(adapter: Tuned) -> dict[str, LoraRows]:
    return {name: LoraRows(a=pair.a[None], b=pair.b[None], pair_of_row=None) for name, pair in adapter.lora.items()}


def _join_lora_of_many(rows: Sequence[Tuned]) -> dict[str, LoraRows]:
    adapters = list({id(row): row for row in rows}.values())
    place = {id(adapter): index for index, adapter in enumerate(adapters)}
    stacked = {}
    for name in {name: None for adapter in adapters for name in adapter.lora}:
        pairs = [adapter.lora.get(name) for adapter in adapters]
        known = next(pair for pair in pairs if pair is not None)
        rank = max(len(pair.a) for pair in pairs if pair is not None)
        a = known.a.new_zeros(len(pairs), rank, known.a.shape[1])
        b = known.b.new_zeros(len(pairs), len(known.b), rank)
        for index, pair in enumerate(pairs):
            if pair is not None:  # an adapter that leaves the layer alone keeps zeros: it adds nothing
                a[index, : len(pair.a)] = pair.a
                b[index, :, : len(pair.a)] = pair.b
        chosen = torch.tensor([place[id(row)] for row in rows], device=a.device)
        stacked[name] = LoraRows(a=a, b=b, pair_of_row=chosen)
    return stacked


T = TypeVar("T")

_recomputes: ContextVar[bool] = ContextVar("recomputes", default=False)


@contextmanager
def recompute_layers(on: bool) -> Iterator[None]:
    """Keep only the inputs of layers, for the gradient of the model calls of this block in this thread."""
    token = _recomputes.set(on)
    try:
        yield
    finally:
        _recomputes.reset(token)


def run_layer(layer: Callable[..., T], /, *inputs: object, **others: object) -> T:
    """Return what a layer makes of its inputs, keeping those alone where `recompute_layers` asks for it."""
    if not (_recomputes.get() and torch.is_grad_enabled()):
        return layer(*inputs, **others)
    steering = get_steering()  # the way back may run in another thread, as on a GPU, and after the block

    def run_again(*inputs: object) -> T:
        with apply_steering(steering):
            return layer(*inputs, **others)

    # No state of a generator is kept, because a frozen model draws nothing.
    found: T = checkpoint(run_again, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name: the members of its outermost `ModuleList`s, in all families that are admitted."""
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

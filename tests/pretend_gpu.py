"""A device that is none: it keeps its numbers on the processor, and refuses as a GPU does what lies elsewhere.

torch lets a device be written in Python. This one computes each operation by the processor's kernel, on tensors that
say that they are somewhere else. So a whole run can be made on it, numbers and all; whoever hands an operation a tensor
that was left on the processor gets an error, and so does whoever asks for `numpy()`. The way back runs in a thread of
torch's own, as on a GPU. Speed, kernels and memory of a GPU are another matter. It is registered for the rest of the
process, and so used in a process of its own.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
# What takes places from another device, and brings them over by itself.
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_kept: list[torch.library.Library] = []


class Elsewhere(torch.Tensor):
    """A tensor on the device, whose numbers are those of `here`, a tensor on the processor."""

    @staticmethod
    def __new__(cls, here):
        """Take a tensor on the processor, of which this one has sizes and strides."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=f"{NAME}:0",
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, _types, arguments=(), options=None):
        """Compute an operation that reads such a tensor."""
        return _run(operation, *arguments, **(options or {}))

    def tolist(self):
        """The numbers; torch gives those of no other class than its own."""
        return self.here.tolist()

    def numpy(self, **_options):
        """Nothing: as on a GPU, an array shares the memory of the processor."""
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy
    __torch_function__ = torch._C._disabled_torch_function_impl


def _is_there(value):
    return isinstance(value, Tensor) and value.device.type == NAME


def _bring(value):
    return value.here if _is_there(value) else value


def _run(operation, *arguments, **options):
    """Compute an operation by the processor's kernel, if all that it reads is on this device."""
    schema = operation._schema
    tensors = [value for value in tree_flatten((arguments, options))[0] if isinstance(value, Tensor)]
    in_lists = {id(value) for one in arguments if isinstance(one, list | tuple) for value in one}
    for value in tensors if schema.name != "aten::copy_" else ():
        listed = id(value) in in_lists
        left_behind = value.device.type == "cpu" and (value.dim() > 0 or listed)  # a number may be anywhere
        if left_behind and not (listed and schema.name in _INDEXED):
            raise RuntimeError(f"expected all tensors to be on the same device, got cpu and {NAME} in {schema.name}")
    wanted = options.get("device")
    there = any(map(_is_there, tensors)) if wanted is None else torch.device(wanted).type == NAME
    if wanted is not None:
        options = {**options, "device": "cpu"}
    found = operation(*tree_map(_bring, arguments), **tree_map(_bring, options))
    written = [
        options.get(one.name, arguments[place] if place < len(arguments) else None)
        for place, one in enumerate(schema.arguments)
        if one.alias_info is not None and one.alias_info.is_write
    ]
    homes = {id(_bring(value)): value for value in tree_flatten(written)[0] if isinstance(value, Tensor)}

    def send(one):
        if not (there and isinstance(one, Tensor)):
            return one
        return homes[id(one)] if id(one) in homes else Elsewhere(one)

    return tree_map(send, found)


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _copy(source, target, non_blocking=False):
    _bring(target).copy_(_bring(source))
    return target


def register():
    """Make the device known to torch, in this process and for good; returns it."""
    if not _kept:
        _setup_privateuseone_for_python_backend(NAME)
        # What recomputing asks of a device, although nothing here is computed in two precisions.
        getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
        everything = torch.library.Library("_", "IMPL")
        everything.fallback(_run, "PrivateUse1")
        own = torch.library.Library("aten", "IMPL")
        own.impl("scaled_dot_product_attention", _attend, "AutogradPrivateUse1")
        own.impl("scaled_dot_product_attention", _attend, "PrivateUse1")
        own.impl("_copy_from", _copy, "PrivateUse1")
        _kept.extend([everything, own])
        # Views of tensors are made here, and torch takes none that are made otherwise in its mode for inference.
        torch.inference_mode = torch.no_grad
    return torch.device(NAME)

"""Parts of `transformers` that are used beyond its models by name: here and nowhere else, because they move.

The tests hold a law for each of them, and run with the oldest version that is allowed and with the newest there is. The
library takes seconds to import, so each function does it, and whoever only asks for sizes never pays for it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import torch
from torch import Tensor, nn

from rapt.errors import UsageError

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache


def import_library() -> None:
    """Import what every model needs of the library, for processes that are forked from this one."""
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto  # noqa: F401  # imported for the processes that come


class CacheLayer(Protocol):
    """Keys and values that a cache holds of one layer, once something is in it: (B, H, W, d) each."""

    keys: Tensor
    values: Tensor


def make_cache_arguments(module: nn.Module, cache: object) -> dict[str, Any]:
    """Arguments of a forward pass that reads and fills a cache; before 5.24 it is called `past_key_values`."""
    return {_find_cache_argument(type(module).forward): cache, "use_cache": True}


@functools.cache
def _find_cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def empty_cache() -> EncoderDecoderCache:
    """A cache of an encoder-decoder that has read nothing."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def list_cache_layers(cache: DynamicCache) -> list[CacheLayer]:
    """The layers of a cache, whose keys and values may be replaced."""
    return cast(list[CacheLayer], cache.layers)


def make_loading_arguments(weights: str, *, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments with which a frozen model is loaded: none for `whole` weights, others for `8bit` and `4bit`.

    Weights of 4 bits are NF4 (Dettmers et al. 2023), in blocks of 64. With 8 bits, what a layer reads is rounded, too,
    by way of float16 and each position by itself (Dettmers et al. 2022, without their way for outliers, which looks at
    the whole batch).

    Raises:
        UsageError: The package is missing.
    """
    if weights == "whole":
        return {}
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise UsageError(f"weights={weights} needs two packages; run: pip install bitsandbytes accelerate")
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every pass of a layer of 8 bits
    chosen: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if weights == "4bit":
        chosen = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    made = BitsAndBytesConfig(**chosen)  # type: ignore[no-untyped-call]  # the library gives it no types
    return {"quantization_config": made, "device_map": {"": str(device)}}


_BLOCK: Final = 64  # numbers of a weight that share a scale


def keep_layout(model: nn.Module) -> None:
    """Let layers of 4 bits stay as they are: on some processors their first pass packs them for another kernel.

    That changes what everybody shares while a job may be computing gradients by it, and rounds to bfloat16.

    Raises:
        UsageError: A layer has rows that are no whole blocks, which the package reads wrongly on a processor.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            width = module.in_features
            if width % _BLOCK:
                raise UsageError(
                    f"weights=4bit needs linear layers that read a multiple of {_BLOCK} numbers, got {width} in {name};"
                    " use 8bit or whole"
                )


class StatesGiven(nn.Module):
    """Takes the place of a model's layers: its last states are the vectors that are put in."""

    def forward(self, *others: Any, inputs_embeds: Tensor, **more: Any) -> Any:
        """The answer of a model that had these states."""
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=cast(Any, inputs_embeds))


_places: ContextVar[Tensor | None] = ContextVar("places", default=None)


def place_rows(decoder: nn.Module) -> None:
    """Let a second half with a table of positions be told the position of each row's next word, by `place_rows_at`.

    By itself it counts the columns of its cache, which are the same for every row.
    """
    table = getattr(decoder, "embed_positions", None)
    if isinstance(table, nn.Embedding):
        table.register_forward_hook(_compute_own_places)


def _compute_own_places(table: nn.Embedding, inputs: object, found: Tensor) -> Tensor:
    places = _places.get()
    if places is None:
        return found
    return nn.functional.embedding(places + getattr(table, "offset", 0), table.weight)


@contextmanager
def place_rows_at(places: Tensor) -> Iterator[None]:
    """Give the rows of the calls in this block, in this thread, their positions, (B, 1)."""
    token = _places.set(places)
    try:
        yield
    finally:
        _places.reset(token)


def register_attention(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Let models be set to an attention function, which gets the masks of `sdpa`: True where a key is seen, or None."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def attend_fused(*tensors: Any, **settings: Any) -> tuple[Tensor, None]:
    """Compute attention as a model set to `sdpa` does; it calls an attention function with these very arguments."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    answer: tuple[Tensor, None] = sdpa_attention_forward(*tensors, **settings)
    return answer


def read_linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Sizes (in, out) of a linear layer, GPT-2's own kind included; None of anything else."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None


def find_kinds(model_type: str) -> frozenset[str]:
    """The kinds of which the library has a model of this type: `encoder`, `decoder`, `encoder-decoder`."""
    from transformers.models.auto import modeling_auto as auto

    known = {
        "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "encoder-decoder": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    return frozenset(kind for kind, names in known.items() if model_type in names)


def activation(name: str) -> nn.Module:
    """The activation that a `config.json` names."""
    from transformers.activations import ACT2FN

    found: nn.Module = ACT2FN[name]
    return found


def render_chat(template: str, messages: Sequence[Mapping[str, str]], *, bos_token: str, eos_token: str) -> str:
    """A chat, and the beginning of its answer, as a template writes it in the sandbox that templates are written for.

    Args:
        template: Template of a model's authors.
        messages: Messages, each of a `role` and a `content`.
        bos_token: Token that a text begins with, as text.
        eos_token: Token that a text ends with, as text.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    found: Any = render_jinja_template(  # texts, and what is of no use here; its annotation says otherwise
        conversations=[[dict(message) for message in messages]],
        chat_template=template,
        add_generation_prompt=True,
        bos_token=bos_token,
        eos_token=eos_token,
    )
    return str(found[0][0])


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, and no warning of a head that is in the checkpoint and not used."""
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library gives it no types
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(level)

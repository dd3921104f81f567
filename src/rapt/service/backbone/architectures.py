"""The architectures that there are: one entry each, with what loads a checkpoint and what denoising trains of it.

The library of models takes seconds to import, and each loader imports what it needs of it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rapt.errors import VocabularyError
from rapt.service.backbone.bert_forward import bert_forward_of
from rapt.service.backbone.library import activation, keep_layout, quiet

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedModel


class LanguageHead(nn.Module):
    """Logits E·f(g) + b: a table of words, behind a transformation where the architecture has one.

    BERT's masked-word head is a dense layer, an activation and a layer norm, then the table and a bias (Devlin et al.
    2019, as released); T5 multiplies states by h^-1/2 where it shares its table; decoders have the table alone.
    """

    table: Tensor
    bias: Tensor | None

    def __init__(
        self,
        table: Tensor,
        *,
        bias: Tensor | None = None,
        transform: nn.Module | None = None,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> None:
        """Keep (V, e) rows, not copied, and what goes before them; e is h but where a transformation makes it another.

        With a cap c, logits are c tanh(l / c) (Gemma 2). Label words are compared before it, where their order is the
        same.
        """
        super().__init__()
        self.register_buffer("table", table.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self.transform = transform
        self.scale = scale
        self.cap = cap

    def forward(self, states: Tensor, *, word_ids: Tensor | None = None) -> Tensor:
        """Logits of all words, (..., h) -> (..., V) in float32, or of `word_ids` alone, (..., C)."""
        table, bias = self.table, self.bias
        if word_ids is not None:
            table, bias = table[word_ids], None if bias is None else bias[word_ids]
        logits: Tensor = nn.functional.linear(self.transformed(states).to(table.dtype), table, bias)
        logits = logits.float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def transformed(self, states: Tensor) -> Tensor:
        """Return the vectors that are multiplied with the table, (..., h) -> (..., e), float32."""
        if self.transform is not None:
            states = self.transform(states.to(self.table.dtype))
        return states.float() * self.scale

    def rows(self, word_ids: Tensor) -> tuple[Tensor, Tensor]:
        """W (C, e) and b (C,) of some words, float32: `transformed(g) W^T + b` are their logits."""
        weight = self.table[word_ids].float()
        bias = weight.new_zeros(len(weight)) if self.bias is None else self.bias[word_ids].float()
        return weight, bias


class MaskedWordTransform(nn.Module):
    """The part of BERT's masked-word head before the table: dense layer, activation, layer norm."""

    def __init__(self, *, hidden_size: int, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        """Make layers of the right sizes, whose weights are to be loaded."""
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.activation = activation

    def forward(self, states: Tensor) -> Tensor:
        """Transformed states, of the same shape."""
        changed: Tensor = self.norm(self.activation(self.dense(states)))
        return changed


def transform_from(
    *, dense: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor], activation: Callable[[Tensor], Tensor], epsilon: float
) -> MaskedWordTransform:
    """The transformation with the weights and biases of a checkpoint."""
    transform = MaskedWordTransform(hidden_size=len(dense[1]), activation=activation, epsilon=epsilon)
    with torch.no_grad():
        for layer, (weight, bias) in ((transform.dense, dense), (transform.norm, norm)):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return transform


# encoder: every position sees every other. encoder-decoder: text goes into the first half, words come out of the
# second. decoder: a position sees those before it.
Kind = Literal["encoder", "encoder-decoder", "decoder"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """The parts of a loaded checkpoint.

    Attributes:
        whole: The model as loaded, of which the two below are parts or which is itself the first.
        encoder: Module from input vectors to last-layer states; of a decoder-only model, all of its layers.
        decoder: The second half of an encoder-decoder; None for the others.
        language_head: Scores of words from states; None where the checkpoint has none.
        segment_shift: Vector that a position of the second text has more in its input than one of the first, (h,);
            None where an architecture tells them apart by tokens alone.
        takes_positions: Whether `encoder` is told the position of each vector; T5 knows distances only.
        own_forward: Gives the states of `encoder`, faster; its weights take no gradient. None where there is none.
    """

    whole: PreTrainedModel
    encoder: nn.Module
    decoder: nn.Module | None = None
    language_head: LanguageHead | None = None
    segment_shift: Tensor | None = None
    takes_positions: bool = True
    own_forward: nn.Module | None = None


def check_complete(missing: Collection[str], *, architecture: str) -> None:
    """Refuse a checkpoint of which the library would make up weights (`VocabularyError`)."""
    if missing:
        raise VocabularyError(
            f"a model must have all weights of its architecture {architecture!r}, got {len(missing)} too few; fetch it "
            "again, or take another checkpoint"
        )


def _load_whole(kind: Any, folder: Path, *, dtype: torch.dtype, **more: Any) -> Any:
    """A model of a class of the library, with all its weights."""
    with quiet():
        whole, notes = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            **more,
        )
    check_complete(notes["missing_keys"], architecture=whole.config.model_type)
    return whole


# BERT: a bidirectional encoder, with its masked-word head where the checkpoint has one.


_HEAD: Final = "cls.predictions."


def _load_bert(folder: Path, *, dtype: torch.dtype, **more: Any) -> Parts:
    """The encoder, the masked-word head or None, and what marks a second sentence."""
    from transformers import BertModel

    encoder = _load_whole(BertModel, folder, dtype=dtype, add_pooling_layer=False, **more)
    types: Tensor = encoder.embeddings.token_type_embeddings.weight.detach().float()
    return Parts(
        whole=encoder,
        encoder=encoder,
        language_head=_load_masked_word_head(folder, encoder, dtype=dtype),
        # The encoder itself adds the first row everywhere, so a second text has the difference on top.
        segment_shift=types[1] - types[0] if len(types) > 1 else None,
        own_forward=None if more else bert_forward_of(encoder, dtype=dtype),  # of weights that are whole
    )


def _load_masked_word_head(folder: Path, encoder: BertModel, *, dtype: torch.dtype) -> LanguageHead | None:
    """The head in `model.safetensors`; a checkpoint in shards, or one without the head, gives None."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as weights:
        found = {name.removeprefix(_HEAD): name for name in weights.keys() if name.startswith(_HEAD)}

        def tensor(*names: str) -> Tensor | None:
            known = [found[name] for name in names if name in found]
            return weights.get_tensor(known[0]) if known else None

        dense = tensor("transform.dense.weight"), tensor("transform.dense.bias")
        # Checkpoints that were converted from TensorFlow call them gamma and beta.
        norm = (
            tensor("transform.LayerNorm.weight", "transform.LayerNorm.gamma"),
            tensor("transform.LayerNorm.bias", "transform.LayerNorm.beta"),
        )
        bias, own = tensor("bias", "decoder.bias"), tensor("decoder.weight")
    if dense[0] is None or dense[1] is None or norm[0] is None or norm[1] is None or bias is None:
        return None
    transform = transform_from(
        dense=(dense[0], dense[1]),
        norm=(norm[0], norm[1]),
        activation=activation(encoder.config.hidden_act),
        epsilon=encoder.config.layer_norm_eps,
    )
    table = encoder.embeddings.word_embeddings.weight if own is None else own.to(dtype)
    return LanguageHead(table, bias=bias.to(dtype), transform=transform.to(dtype))


# T5: text goes into the encoder, words come out of the decoder. Positions are distances, so none is told.


def _load_t5(folder: Path, *, dtype: torch.dtype, **more: Any) -> Parts:
    """Encoder, decoder and head of a T5 checkpoint, 1.0, 1.1 or multilingual."""
    from transformers import AutoModelForSeq2SeqLM

    whole = _load_whole(AutoModelForSeq2SeqLM, folder, dtype=dtype, **more)
    whole.config.use_cache = whole.decoder.config.use_cache = False
    # A model that shares its table scales the states before it (Raffel et al. 2020, as released); T5 1.1, mT5 do not.
    scale = float(whole.config.d_model**-0.5) if getattr(whole.config, "scale_decoder_outputs", False) else 1.0
    return Parts(
        whole=whole,
        encoder=whole.encoder,
        decoder=whole.decoder,
        language_head=LanguageHead(whole.lm_head.weight, scale=scale),
        takes_positions=False,
    )


# Llama and its like (SmolLM2): a decoder with rotary positions and grouped-query attention.


def _load_llama(folder: Path, *, dtype: torch.dtype, **more: Any) -> Parts:
    """The layers and the head, which may share its table with the input."""
    from transformers import LlamaForCausalLM

    whole = _load_whole(LlamaForCausalLM, folder, dtype=dtype, **more)
    whole.config.use_cache = False  # a cache is asked for where it is used
    return Parts(whole=whole.model, encoder=whole.model, language_head=LanguageHead(whole.lm_head.weight))


# GPT-2: a decoder with a table of absolute positions.


def _load_gpt2(folder: Path, *, dtype: torch.dtype, **more: Any) -> Parts:
    """The layers and the head, which shares its table with the input."""
    from transformers import GPT2LMHeadModel

    whole = _load_whole(GPT2LMHeadModel, folder, dtype=dtype, **more)
    whole.config.use_cache = False  # a cache is asked for where it is used
    return Parts(whole=whole.transformer, encoder=whole.transformer, language_head=LanguageHead(whole.lm_head.weight))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a `model_type` is read, and what of it learns to expect noise.

    Attributes:
        kind: Kind of attention.
        load: Reads the parts out of a checkpoint's folder.
        prefix: Prefix of the name of an encoder's weight in a checkpoint with a head.
        left_alone: Beginnings of the names, without the prefix, of the weights that denoising leaves alone: words,
            positions, and their norm.
    """

    kind: Kind
    load: Callable[..., Parts]
    prefix: str
    left_alone: tuple[str, ...]


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "bert": Architecture(kind="encoder", load=_load_bert, prefix="bert.", left_alone=("embeddings.",)),
    # The decoder of a T5 reads words in clear, and stays as it is.
    "t5": Architecture(kind="encoder-decoder", load=_load_t5, prefix="encoder.", left_alone=("embed_tokens.",)),
    "llama": Architecture(kind="decoder", load=_load_llama, prefix="model.", left_alone=("embed_tokens.",)),
    "gpt2": Architecture(kind="decoder", load=_load_gpt2, prefix="transformer.", left_alone=("wte.", "wpe.")),
}


# Model types that are another by its structure, and have an entry under that name.
ALIASES: Final[Mapping[str, str]] = {"mt5": "t5"}


def load_parts(architecture: str, folder: Path, *, dtype: torch.dtype, model: str, more: Mapping[str, Any]) -> Parts:
    """The parts of a model in a folder, by its `model_type`; `more` is of `library.make_loading_arguments`.

    Raises:
        VocabularyError: The model's files are missing or damaged.
    """
    try:
        parts = ARCHITECTURES[architecture].load(folder, dtype=dtype, **more)
    except torch.OutOfMemoryError:  # a RuntimeError as well, and `room_for` has the words for it
        raise
    except (OSError, RuntimeError):  # a size that does not fit is a RuntimeError; both messages may name paths
        raise VocabularyError(
            f"model={model!r} must have config.json and model.safetensors that fit each other; install it again"
        ) from None
    keep_layout(parts.whole)
    return parts

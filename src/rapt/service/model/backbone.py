"""The frozen language model: token ids or vectors in, last-layer states out.

Nothing here is ever trained. Gradients flow through it to the vectors that are put in, never into its weights.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers.utils import logging

from rapt.errors import UsageError, VocabularyError
from rapt.public_models import model_directory
from rapt.wire.vocabulary_bundle import VocabularyBundle, bundle_from_model_directory

Precision = Literal["auto", "float32", "bfloat16"]
ARCHITECTURES: Final = ("bert",)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder with its vocabulary.

    Attributes:
        model: Its name.
        bundle: The vocabulary that users privatize with; its hash is what both sides compare.
        encoder: The transformer, in evaluation mode, no parameter of which takes a gradient.
        word_embeddings: The table E, (V, h), in float32.
        hidden_size: h.
        dtype: Of the encoder's weights; what is trained is float32 whatever this is.
        max_positions: Longest sequence, everything counted.
        cls_id: Id of the token that stands first.
        sep_id: Id of the token that stands last.
        pad_id: Id of the filler, masked from attention.
    """

    model: str
    bundle: VocabularyBundle
    encoder: nn.Module
    word_embeddings: Tensor
    hidden_size: int
    dtype: torch.dtype
    max_positions: int
    cls_id: int
    sep_id: int
    pad_id: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.word_embeddings.device

    def embed(self, token_ids: Tensor) -> Tensor:
        """Rows of the table, (B, T) -> (B, T, h), float32, before positions and layer norm."""
        return nn.functional.embedding(token_ids, self.word_embeddings)

    def encode(self, inputs_embeds: Tensor, *, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Last-layer states, (B, T, h), float32.

        Args:
            inputs_embeds: Vectors at the place of word embeddings, (B, T, h); may require a gradient.
            attention_mask: 1 at real positions, (B, T).
            position_ids: Explicit positions, (B, T): a model must not guess them from padded vectors.
        """
        states: Tensor = self.encoder(
            inputs_embeds=inputs_embeds.to(self.dtype),
            attention_mask=attention_mask,
            position_ids=position_ids,
        ).last_hidden_state
        return states.float()


@functools.lru_cache(maxsize=4)
def load_backbone(model: str, *, precision: Precision = "auto", device: str = "auto") -> Backbone:
    """The named model, frozen; loading it twice gives the same object.

    Args:
        model: A name in `PUBLIC_MODELS`, or a folder in Hugging Face's layout.
        precision: `auto` takes bfloat16 where it is measured to be faster on this processor, else float32.
        device: `auto` takes a GPU where there is one.

    Raises:
        VocabularyError: Its files are missing.
        UsageError: Its architecture is not one of `ARCHITECTURES`.
    """
    folder = model_directory(model)
    bundle = bundle_from_model_directory(folder, model=model)
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("model_type") not in ARCHITECTURES:
        raise UsageError(
            f"a backbone must be of architecture {' or '.join(ARCHITECTURES)}, got {config.get('model_type')!r}; "
            "choose another model"
        )
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    dtype = _dtype(precision, place)
    encoder = _load_bert(str(folder), dtype=dtype).requires_grad_(False).eval().to(place)
    table = torch.from_numpy(bundle.embeddings.copy()).to(place)
    cls_id, sep_id, pad_id = (_token_id(bundle, name) for name in ("[CLS]", "[SEP]", "[PAD]"))
    return Backbone(
        model=model,
        bundle=bundle,
        encoder=encoder,
        word_embeddings=table,
        hidden_size=table.shape[1],
        dtype=dtype,
        max_positions=bundle.max_tokens,
        cls_id=cls_id,
        sep_id=sep_id,
        pad_id=pad_id,
    )


def _load_bert(folder: str, *, dtype: torch.dtype) -> nn.Module:
    level = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a head we do not use is not worth a warning
    try:
        encoder: nn.Module = BertModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True, dtype=dtype, attn_implementation="sdpa"
        )
    finally:
        logging.set_verbosity(level)
    return encoder


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
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
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            left @ right
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    return seconds[0] / seconds[1]


def _token_id(bundle: VocabularyBundle, content: str) -> int:
    for token in json.loads(bundle.tokenizer_json)["added_tokens"]:
        if token["content"] == content:
            return int(token["id"])
    raise VocabularyError(
        f"the tokenizer of model={bundle.model!r} must have the token {content!r}; take another model"
    )

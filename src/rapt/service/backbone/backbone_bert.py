"""BERT: a bidirectional encoder, with its masked-word head where the checkpoint has one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import BertModel

from rapt.service.backbone.backbone_parts import Parts
from rapt.service.backbone.bert_forward import bert_forward_of
from rapt.service.backbone.language_head import LanguageHead, transform_from
from rapt.service.backbone.library import activation, quiet

_HEAD: Final = "cls.predictions."


def load(folder: Path, *, dtype: torch.dtype) -> Parts:
    """The encoder, the masked-word head or None, and what marks a second sentence."""
    with quiet():
        encoder = BertModel.from_pretrained(
            str(folder), add_pooling_layer=False, local_files_only=True, dtype=dtype, attn_implementation="sdpa"
        )
    types: Tensor = encoder.embeddings.token_type_embeddings.weight.detach().float()
    return Parts(
        whole=encoder,
        encoder=encoder,
        language_head=_masked_word_head(folder, encoder, dtype=dtype),
        # The encoder itself adds the first row everywhere, so a second text has the difference on top.
        segment_shift=types[1] - types[0] if len(types) > 1 else None,
        own_forward=bert_forward_of(encoder, dtype=dtype),
    )


def _masked_word_head(folder: Path, encoder: BertModel, *, dtype: torch.dtype) -> LanguageHead | None:
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

"""Llama and its like (SmolLM2): a decoder with rotary positions and grouped-query attention."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from rapt.service.backbone.backbone_parts import Parts
from rapt.service.backbone.language_head import LanguageHead
from rapt.service.backbone.library import quiet


def load(folder: Path, *, dtype: torch.dtype) -> Parts:
    """The layers and the head, which may share its table with the input."""
    with quiet():
        whole = LlamaForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, attn_implementation="sdpa"
        )
    whole.config.use_cache = False  # a cache is asked for where it is used
    return Parts(whole=whole.model, encoder=whole.model, language_head=LanguageHead(whole.lm_head.weight))

"""GPT-2: a decoder with a table of absolute positions."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from rapt.service.backbone.backbone_parts import Parts
from rapt.service.backbone.language_head import LanguageHead
from rapt.service.backbone.library import quiet


def load(folder: Path, *, dtype: torch.dtype) -> Parts:
    """The layers and the head, which shares its table with the input."""
    with quiet():
        whole = GPT2LMHeadModel.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, attn_implementation="sdpa"
        )
    whole.config.use_cache = False  # a cache is asked for where it is used
    return Parts(whole=whole.transformer, encoder=whole.transformer, language_head=LanguageHead(whole.lm_head.weight))

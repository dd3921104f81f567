"""T5: text goes into the encoder, words come out of the decoder. Positions are distances, so none is told."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

from rapt.service.backbone.backbone_parts import Parts
from rapt.service.backbone.language_head import LanguageHead
from rapt.service.backbone.library import quiet


def load(folder: Path, *, dtype: torch.dtype) -> Parts:
    """Encoder, decoder and head of a T5 checkpoint, 1.0 or 1.1."""
    with quiet():
        whole = T5ForConditionalGeneration.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, attn_implementation="sdpa"
        )
    whole.config.use_cache = whole.decoder.config.use_cache = False
    # A model that shares its table scales the states before it (Raffel et al. 2020, as released); T5 1.1 does not.
    scale = float(whole.config.d_model**-0.5) if whole.config.scale_decoder_outputs else 1.0
    return Parts(
        whole=whole,
        encoder=whole.encoder,
        decoder=whole.decoder,
        language_head=LanguageHead(whole.lm_head.weight, scale=scale),
        takes_positions=False,
    )

"""A codebook in the place of a language model: what a text released is its state, and a head alone is tuned on it.

Each privatized text is a few ids of public codewords (`rapt.wire.code_bundle`). The table is the codebook, nothing
stands around a text, and no layer follows: the mean state of a record is its codeword, or all of its codewords side by
side divided by their number. So a code shares files, jobs, batches and adapters with the tokens of other models.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from rapt.service.backbone.frame import Frame
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.vocabulary_bundle import VocabularyBundle

ARCHITECTURE: Final = "codes"
# A pair has the codes of two texts.
_TEXTS: Final = 2

FRAME: Final = Frame(
    start=(), between=(), end=(), pad_id=0, mask_id=None, sentinel_id=None, decoder_start=(), eos_id=None
)


class CodeStates(nn.Module):
    """No layers: the states are the vectors that are put in, (B, T, k) -> (B, T, k)."""

    def __init__(self) -> None:
        """Have no parameters, and the number of attention heads that whoever counts costs asks for."""
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=0)

    def forward(self, *, inputs_embeds: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Return the vectors as last-layer states; the mask is the reader's to apply."""
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def view_as_vocabulary(code: CodeBundle) -> VocabularyBundle:
    """Return what checks ids and lengths of codes as those of tokens: a table, (r N, r k'), without a tokenizer.

    The codewords of a text's i-th code have the rows from i N on, and stand in the i-th run of k' columns.
    """
    codes, size, width = code.codewords.shape
    table = np.zeros((codes, size, codes, width), dtype=np.float32)
    for place in range(codes):
        table[place, :, place] = code.codewords[place]
    return VocabularyBundle(
        model=code.model,
        tokenizer_json=b"",
        embeddings=table.reshape(codes * size, codes * width),
        eligible=np.arange(size),
        max_tokens=_TEXTS * codes,
        special_tokens=0,
        hash=code.hash,
    )


def find_rows(code: CodeBundle, ids: Tensor) -> Tensor:
    """Return the row in the table of each id, (B, T): the ids of one text are those of its 1st, 2nd, ... code."""
    return ids + code.size * (torch.arange(ids.shape[1], device=ids.device) % code.codes)

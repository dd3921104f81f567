"""The word head: which word stood where a privatized one arrived, read off the states of a backbone that expects noise.

Bayes' rule would weigh every word x by what the context says and by how likely the mechanism makes y of x. The head
learns the product from public text instead. It begins at what is known without context and without training: words are
as frequent as in public text, and a word that arrived was left alone in half of the cases.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from rapt.errors import UsageError, VocabularyError

WORD_HEAD: Final = "word_head.safetensors"


class WordHead(nn.Module):
    """Logits z_x = f(g, E(y))·E(x)/s + b_x of every word x, and c(g, E(y)) on top where x = y, the word that arrived.

    f is two linear layers, c is one; E is the table of word embeddings, which is not trained, and s the mean length of
    its rows. What is trained is of the size of one layer of the backbone, and b.
    """

    table: Tensor

    def __init__(self, table: Tensor, *, log_prior: Tensor, generator: torch.Generator) -> None:
        """Begin at f = 0 and at the copying that makes of two outcomes alike: left alone, or replaced by any word.

        Args:
            table: E, (V, h), in clear: not soft embeddings.
            log_prior: Log frequencies of words in public text, (V,); where b begins.
            generator: Of the first weights.
        """
        super().__init__()
        words, width = table.shape
        self.register_buffer("table", table / table.norm(dim=1).mean(), persistent=False)
        self.inner = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.outer = nn.Linear(width, width)
        self.copying = nn.Linear(2 * width, 1)
        self.bias = nn.Parameter(log_prior.detach().clone())
        with torch.no_grad():
            self.inner.weight.normal_(std=(2 * width) ** -0.5, generator=generator)
            for parameter in (self.inner.bias, *self.outer.parameters(), *self.copying.parameters()):
                parameter.zero_()
            # P(y|x)/P(x'|x) of a mechanism that leaves half of the words alone and replaces the others by any word.
            self.copying.bias.fill_(math.log(words))

    def forward(self, states: Tensor, arrived: Tensor) -> Tensor:
        """Logits (N, V) of N positions.

        Args:
            states: Last-layer states g, (N, h).
            arrived: Tokens y at these positions, (N,), int64.
        """
        seen = torch.cat([_standard(states), _standard(self.table[arrived])], dim=1)
        wanted = self.outer(self.norm(gelu(self.inner(seen))))
        logits = linear(wanted, self.table, self.bias)
        return logits.scatter_add(1, arrived[:, None], self.copying(seen))


def _standard(vectors: Tensor) -> Tensor:
    """The vectors at mean 0 and variance 1: architectures differ in the lengths of their states and rows."""
    return layer_norm(vectors, vectors.shape[-1:])


def has_word_head(folder: Path) -> bool:
    """Whether a model folder has one, sound or not."""
    return (folder / WORD_HEAD).is_file()


def word_head_file(head: WordHead) -> bytes:
    """What is written beside the weights of its backbone; the table is the backbone's and left out."""
    return save_tensors({name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()})


def read_word_head(folder: Path, *, table: Tensor) -> WordHead:
    """The head in a model folder, frozen.

    Args:
        folder: Of the backbone that it reads.
        table: The backbone's word embeddings in clear, (V, h); says where it computes.

    Raises:
        UsageError: There is none.
        VocabularyError: The file is damaged or of another backbone.
    """
    head = WordHead(table, log_prior=table.new_zeros(len(table)), generator=torch.Generator())
    expected = {name: tensor.shape for name, tensor in head.state_dict().items()}
    try:
        found = load_tensors((folder / WORD_HEAD).read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"reading words needs a backbone with {WORD_HEAD}, got a folder without; add one with rapt word-head"
        ) from None
    except (OSError, SafetensorError):
        found = {}
    sound = {name: tensor.shape for name, tensor in found.items()} == expected
    if not sound or not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in found.values()):
        raise VocabularyError(
            f"{WORD_HEAD} must hold the finite weights of a head for this backbone; make it again with rapt word-head"
        )
    head.load_state_dict(found)
    return head.requires_grad_(False).eval().to(table.device)

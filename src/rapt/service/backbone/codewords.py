"""Codewords in a backbone: a codebook in a language model's place, or a reader that puts them before a frozen one.

*A codebook.* Each privatized text is a few ids of public codewords (`rapt.wire.code_bundle`). The table is the
codebook, nothing stands around a text, and no layer follows: the mean state of a record is its codeword, or all of its
codewords side by side divided by their number. So a code shares files, jobs, batches and adapters with the tokens of
other models, and a head alone is tuned on it.

*A reader* puts input vectors of a frozen backbone in the place of the codewords. Codewords have ids behind the words of
the backbone: first_id + ((e r N + i N + y) v + j) is the j-th vector of the codeword y in the i-th codebook, at the
e-th ε that the reader was trained at. So a code is a run of tokens that no tokenizer writes, and layouts, prompts,
batches and adapters treat it as any text. Rows of tokens and rows of codes may share a forward pass.

What a text released goes in, and nothing else of the text: reading is post-processing and spends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from rapt.service.backbone.frame import Frame
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.reader_bundle import ReaderBundle
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


class ReaderNetwork(nn.Module):
    """v input vectors from a code: one hidden layer."""

    def __init__(self, *, dimensions: int, width: int, vectors: int, hidden_size: int) -> None:
        """Make layers of the right sizes, whose weights are to be loaded or drawn."""
        super().__init__()
        self.hidden = nn.Linear(dimensions, width)
        self.output = nn.Linear(width, vectors * hidden_size)
        self.vectors = vectors

    def forward(self, points: Tensor) -> Tensor:
        """Input vectors, (n, k) -> (n, v, h)."""
        found: Tensor = self.output(nn.functional.gelu(self.hidden(points)))
        return found.reshape(len(found), self.vectors, self.output.out_features // self.vectors)


@dataclass(frozen=True, eq=False)
class Reader:
    """A network, the codewords that it reads, and their ids in one backbone.

    Attributes:
        network: Network from codes to vectors; frozen but where it is trained.
        points: Row of each codeword: codebook after codebook, (r N, k), each in its own run of the k dimensions.
        codes: r, the number of codewords of a text.
        epsilons: Every ε that the network was trained at, ascending.
        attenuations: c at each of them, (E,).
        first_id: Id of the first vector of the first codeword: the number of words of the backbone.
        plain: Codes of public texts in clear, (P, k).
        hash: Hash of the reader; empty while it is trained.
    """

    network: ReaderNetwork
    points: Tensor
    codes: int
    epsilons: tuple[float, ...]
    attenuations: Tensor
    first_id: int
    plain: Tensor
    hash: str = ""

    def spell(self, codeword_ids: Sequence[int], *, epsilon: float) -> tuple[int, ...]:
        """The ids of the vectors of a text's codewords, r v for r of them, in order.

        Args:
            codeword_ids: One id in each codebook.
            epsilon: ε that the text was released at, or its model was tuned at; the nearest ε of the reader is taken.
        """
        level = min(range(len(self.epsilons)), key=lambda place: abs(self.epsilons[place] - epsilon))
        size, vectors = len(self.points) // self.codes, self.network.vectors
        starts = [
            self.first_id + ((level * self.codes + place % self.codes) * size + one) * vectors
            for place, one in enumerate(codeword_ids)
        ]
        return tuple(start + step for start in starts for step in range(vectors))

    def draw_plain(self, setting: MechanismSetting, *, rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
        """Draw a plain text and codewords for it as a user's text of this setting would have them.

        The text is public, so the noise protects nobody, and floating point is good enough for it.

        Args:
            setting: A mechanism of codes, with its ε and its number of preferred codewords.
            rng: Generator that anybody may know.

        Returns:
            The text's place among the plain texts, and an id in each codebook.
        """
        text, size = int(rng.integers(len(self.plain))), len(self.points) // self.codes
        preferred = min(max(int(setting.parameters["preferred"]), 1), size - 1)
        weight = preferred * math.exp(setting.epsilon / self.codes)
        found = []
        for rows in torch.split(self.points, size):
            order = (rows @ self.plain[text]).argsort(descending=True)
            near = rng.random() < weight / (weight + size - preferred)
            place = rng.integers(preferred) if near else rng.integers(preferred, size)
            found.append(int(order[int(place)]))
        return text, tuple(found)

    def embed(self, ids: Tensor) -> Tensor:
        """The vectors of ids that `spell` gave, (n,) -> (n, h), float32; differentiable in the network."""
        behind = ids - self.first_id
        different, back = torch.unique(behind // self.network.vectors, return_inverse=True)
        level = different // len(self.points)
        points = self.points[different % len(self.points)] * self.attenuations[level][:, None]
        found: Tensor = self.network(points)[back, behind % self.network.vectors]
        return found


def load_reader(bundle: ReaderBundle, *, points: Tensor, first_id: int) -> Reader:
    """The frozen reader of a checked bundle.

    Args:
        bundle: Reader bundle that is opened.
        points: Rows of its codewords, (r N, k).
        first_id: Number of words of the backbone.
    """
    outputs = len(bundle.tensors["output.bias"])
    width, dimensions = bundle.tensors["hidden.weight"].shape
    network = ReaderNetwork(
        dimensions=dimensions, width=width, vectors=bundle.vectors, hidden_size=outputs // bundle.vectors
    )
    weights = {name: torch.from_numpy(item.copy()) for name, item in bundle.tensors.items()}
    plain = weights.pop("plain").to(points.device)
    network.load_state_dict(weights)
    return Reader(
        network=network.requires_grad_(False).eval().to(points.device),
        points=points,
        codes=bundle.code.codes,
        epsilons=bundle.epsilons,
        attenuations=torch.tensor(bundle.attenuations, device=points.device),
        first_id=first_id,
        plain=plain,
        hash=bundle.hash,
    )

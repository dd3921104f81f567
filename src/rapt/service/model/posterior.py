"""The contextual posterior p(x_t | y_1 .. y_n): what stood at each position, given all that arrived.

It is made of privatized text and public knowledge alone, so it spends no budget; and whoever else has both can make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from rapt.service.model.backbone import Backbone
from rapt.service.model.layout import check_length, encode_with_prompts, lay_out
from rapt.service.model.pass_plan import cut_into_passes
from rapt.service.model.word_head import WordHead

# Words that are kept at each position. The rest is left out, and what is kept is scaled to sum to 1.
MOST_WORDS: Final = 16
# Positions whose logits over the vocabulary are in memory at once: 30 MB for 30,000 words.
AT_ONCE: Final = 256


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the words of some texts may have been; N positions in all, K words at each, the most likely first.

    Attributes:
        words: Token ids, (N, K), int32.
        probabilities: Theirs, (N, K), float32; each row sums to 1.
        arrived: Probability that the token that arrived is the true one, P(x_t = y_t | y_1 .. y_n), (N,), float32:
            among all words of the vocabulary, and not only those that are kept.
        lengths: Positions of each text, in order; they sum to N.
    """

    words: Tensor
    probabilities: Tensor
    arrived: Tensor
    lengths: tuple[int, ...]

    def most_likely(self) -> list[tuple[int, ...]]:
        """The most likely word at every position, text by text."""
        return self._by_text(self.words[:, 0])

    def draw(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """A word at every position, independently of the others by the probabilities there, text by text."""
        ends = self.probabilities.double().cumsum(dim=1)
        at = torch.from_numpy(rng.random(len(ends))).to(ends)[:, None] * ends[:, -1:]
        chosen = torch.searchsorted(ends, at, right=True).clamp(max=ends.shape[1] - 1)
        return self._by_text(self.words.gather(1, chosen)[:, 0])

    def mean_vectors(self, table: Tensor) -> Tensor:
        """E[E(x) | y_1 .. y_n] at every position, (N, h), for a table E (V, h) in float32."""
        return nn.functional.embedding_bag(
            self.words.to(table.device), table, per_sample_weights=self.probabilities.to(table), mode="sum"
        )

    def soft_masks(self, table: Tensor, arrived: Tensor, *, mask: int) -> Tensor:
        """c_t E(y_t) + (1 - c_t) E([MASK]) at every position, (N, h), with c for `self.arrived`.

        The form is that of the soft-masked embedding (Zhang et al. 2020, arXiv 2005.07421), which weighs [MASK] by the
        probability of an error, 1 - c_t. Theirs is the output of a network that is trained along with the model, ours
        is read off the posterior.

        Args:
            table: E, (V, h), float32.
            arrived: The tokens y, (N,), int64.
            mask: Id of [MASK].
        """
        sure = self.arrived.to(table)[:, None]
        return sure * table[arrived.to(table.device)] + (1 - sure) * table[mask]

    def _by_text(self, words: Tensor) -> list[tuple[int, ...]]:
        flat = words.tolist()
        ends = list(accumulate(self.lengths, initial=0))
        return [tuple(flat[start:end]) for start, end in pairwise(ends)]


@torch.no_grad()
def text_states(backbone: Backbone, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Last-layer states (N, h) and token ids (N,) of all positions of some texts, text by text, in one pass."""
    count = len(texts)
    layout = lay_out(backbone, prompt_lengths=[0] * count, privatized_plain_tokens=[()] * count, texts=texts)
    chosen = layout.text_mask > 0
    return encode_with_prompts(backbone, layout, None)[chosen], layout.token_ids[chosen]


@torch.no_grad()
def read_posterior(
    backbone: Backbone, head: WordHead, texts: Sequence[Sequence[int]], *, most: int = MOST_WORDS
) -> Posterior:
    """The posterior of privatized texts, each read by itself.

    Args:
        backbone: The one that the head was trained on.
        head: Of that backbone.
        texts: Content tokens as they arrived, one token or more each.
        most: K.

    Raises:
        UsageError: A text does not fit the backbone, or has no token.
    """
    lengths = tuple(len(text) for text in texts)
    for position, length in enumerate(lengths):
        check_length(backbone, prompt_length=0, plain_tokens=0, text_tokens=length, position=position)
    starts = list(accumulate(lengths, initial=0))
    most = min(most, len(head.table))
    words = torch.zeros(starts[-1], most, dtype=torch.int32)
    probabilities = torch.zeros(starts[-1], most)
    sure = torch.zeros(starts[-1])
    for chosen in cut_into_passes(lengths, lanes=[None] * len(texts), device=backbone.device.type):
        states, arrived = text_states(backbone, [texts[index] for index in chosen])
        places = torch.cat([torch.arange(starts[index], starts[index + 1]) for index in chosen])
        for start in range(0, len(places), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            logits = head(states[part], arrived[part])
            best = logits.topk(most, dim=1)
            words[places[part]] = best.indices.int().cpu()
            probabilities[places[part]] = best.values.softmax(dim=1).cpu()
            taken = logits.gather(1, arrived[part][:, None])[:, 0] - logits.logsumexp(dim=1)
            sure[places[part]] = taken.clamp(max=0.0).exp().cpu()  # rounding may put it above 0
    return Posterior(words=words, probabilities=probabilities, arrived=sure, lengths=lengths)

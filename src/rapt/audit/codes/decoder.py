"""A language model conditioned on a code: what would it write, if it had to write the text that this codeword is of?

The codeword becomes a few vectors before the text, by a small network that is trained on texts of the attacker and on
codes that he drew of them; the decoder itself stays as it is. Several texts are written for each code, and the tokens
that occur in most of them are named. Source: prefixes of a frozen decoder, Li and Liang 2021; conditioned on one
vector, Mokady et al. 2021 ("ClipCap"), Morris et al. 2023 for embeddings of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from rapt.audit.codes.readers import Floats, Lesson, WordCounts
from rapt.audit.language.networks import Decoder
from rapt.local.vocabulary import Vocabulary
from rapt.service.backbone.library import make_cache_arguments
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, batch_by_length, scale_rate

# Texts that are judged, at most: each takes as long as writing that many texts.
MOST_JUDGED: Final = 200
STEPS: Final = 300
SAMPLES: Final = 8
LONGEST: Final = 24  # tokens that are learned from and written
_VECTORS: Final = 4
_WIDTH: Final = 128
_BATCH: Final = 16
_RATE: Final = 1e-3
_TOGETHER: Final = 32
# Texts that count as much as the frequencies of the attacker's own texts.
_PRIOR: Final = 1.0


class Prefix(nn.Module):
    """A network from what is seen of a record to vectors before its text, (B, k + 1) -> (B, P, d)."""

    def __init__(self, seen: int, table: Tensor) -> None:
        """Make vectors of the size of those in a decoder's table, (V, d)."""
        super().__init__()
        self.hidden = nn.Linear(seen, _WIDTH)
        self.out = nn.Linear(_WIDTH, _VECTORS * table.shape[1])
        self.size = float(table.std())

    def forward(self, seen: Tensor) -> Tensor:
        """Return the vectors of each record."""
        made: Tensor = self.out(nn.functional.gelu(self.hidden(seen)))
        return self.size * made.view(len(seen), _VECTORS, -1)


def write_words(
    lesson: Lesson,
    words: WordCounts,
    texts: Sequence[str],
    *,
    model: str,
    vocabulary: Vocabulary,
    seed: int,
    steps: int = STEPS,
    samples: int = SAMPLES,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Floats:
    """Return how likely each usual token is in each text that is asked about, by what a decoder writes, (m, V).

    Args:
        lesson: Codes; those that are asked about are written for, one after another.
        words: Usual tokens, and where they occur in the attacker's texts.
        texts: The attacker's texts, in clear.
        model: Decoder, as `find_decoder` takes it.
        vocabulary: Vocabulary that the usual tokens are of.
        seed: Seed of training and writing.
        steps: Batches that are trained on.
        samples: Texts that are written for each code.
        on_progress: Called with the share done.

    Raises:
        VocabularyError: The files of the decoder are missing, or it is none.
    """
    decoder = Decoder((), model=model)
    network, rng = decoder.network, np.random.default_rng(seed)
    table = network.get_input_embeddings()
    assert isinstance(table, nn.Embedding), "a decoder looks its tokens up"
    seen = torch.from_numpy(np.stack(lesson.learned)).float()  # (R, n, k + 1)
    pieces = [decoder.tokenizer.encode(text, add_special_tokens=False).ids[:LONGEST] for text in texts]
    usable = np.flatnonzero([len(ids) > 0 for ids in pieces])
    lengths = np.array([len(pieces[place]) for place in usable])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prefix = Prefix(seen.shape[2], table.weight)
        trainer = Trainer([ParameterGroup(dict(prefix.named_parameters()), _RATE)], way_out="leave the decoder out")

        def draw_batches() -> Iterator[NDArray[np.int64]]:
            done = 0
            while True:
                for batch in batch_by_length(lengths, size=_BATCH, permute=rng.permutation, sorted_together=8):
                    if done == steps:
                        return
                    done += 1
                    yield usable[batch]

        def descend(batch: NDArray[np.int64]) -> Losses:
            width = max(len(pieces[place]) for place in batch)
            ids = torch.tensor([pieces[place] + [0] * (width - len(pieces[place])) for place in batch])
            inside = torch.tensor([[at < len(pieces[place]) for at in range(width)] for place in batch])
            before = prefix(seen[torch.from_numpy(rng.integers(len(seen), size=len(batch))), torch.from_numpy(batch)])
            mask = torch.cat([torch.ones(len(batch), _VECTORS), inside.float()], dim=1)
            found = network(inputs_embeds=torch.cat([before, table(ids)], dim=1), attention_mask=mask.long()).logits
            said = found[:, _VECTORS - 1 : -1].float()
            return back_propagate(nn.functional.cross_entropy(said[inside], ids[inside]))

        for _ in trainer.follow(draw_batches(), descend, rate=lambda step: scale_rate(step, steps, rise=0.1)):
            on_progress(0.5 * trainer.steps / steps)
        counts = np.zeros((len(lesson.asked), len(words.usual)))
        column = {int(token): place for place, token in enumerate(words.usual)}
        rows = np.repeat(np.arange(len(lesson.asked)), samples)
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            written = _write(network, prefix(torch.from_numpy(lesson.asked[part]).float()), table)
            texts_written = [decoder.tokenizer.decode(ids) for ids in written]
            for row, content in zip(part, vocabulary.encode([text or " " for text in texts_written]), strict=True):
                for token in set(content):
                    if token in column:
                        counts[row, column[token]] += 1
            on_progress(0.5 + 0.5 * (start + len(part)) / len(rows))
    return np.asarray((counts + _PRIOR * words.learned.mean(axis=0)) / (samples + _PRIOR))


@torch.inference_mode()
def _write(network: nn.Module, before: Tensor, table: nn.Module) -> list[list[int]]:
    """Return `LONGEST` tokens after each row of vectors, (B, P, d), drawn one by one."""
    cache, vectors, written = DynamicCache(), before, []
    for _ in range(LONGEST):
        logits = network(inputs_embeds=vectors, **make_cache_arguments(network, cache)).logits[:, -1].float()
        chosen = torch.multinomial(logits.softmax(dim=-1), 1)
        written.append(chosen)
        vectors = table(chosen)
    rows: list[list[int]] = torch.cat(written, dim=1).tolist()
    return rows

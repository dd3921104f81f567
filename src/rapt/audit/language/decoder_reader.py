"""A decoder as the reader of a beam: what a large language model expects next, over the words of another vocabulary.

The privatized text is in pieces of one vocabulary and the decoder reads another, so they meet at words. A piece that
begins a word is offered as the whole word; where a piece goes on ("##y"), the word before it is taken back and the
longer one read in its place, which costs nothing but that word: its keys and values are masked out of the cache.

An offer looks at the first of the decoder's own pieces and guesses at the rest; the exact value follows when a word is
taken. "Something else" is offered at 0 and adds no word, so a later word follows on the last that was read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from rapt.audit.language.beam import ENDED
from rapt.public_models import model_directory
from rapt.service.model.library import quiet, with_cache

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_PIECE: Final = "##"
# Nats that each further piece of a word costs, until it is read: about the mean of words of SST-2.
_FURTHER_PIECE: Final = 2.0


class Decoder:
    """A decoder, its tokenizer, and the written form of every row of the other vocabulary."""

    def __init__(self, rows: Sequence[str], *, model: str) -> None:
        """Load it.

        Args:
            rows: Written form of each row of the table: words, and pieces that begin with "##".
            model: A public model of Llama's architecture.

        Raises:
            VocabularyError: Its files are missing.
        """
        folder = model_directory(model)
        self.rows = tuple(rows)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_bytes())
        self.begin = int(config["bos_token_id"])
        with quiet():
            whole = LlamaForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        self.network = whole.requires_grad_(False)
        self.network.train(False)
        self.spelled = lru_cache(maxsize=200_000)(self._spell)

    def _spell(self, word: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(" " + word, add_special_tokens=False).ids)

    def reader(self, rows: int) -> DecoderReader:
        """A reader of so many rows that have read nothing."""
        return DecoderReader(self, rows)


class DecoderReader:
    """See the module. R rows, S places of the cache, V of the decoder."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        """Read the beginning of a text."""
        self._decoder = decoder
        self._words: list[str] = [""] * rows
        self._last_score = np.zeros(rows)
        self._cache = DynamicCache()
        self._mask = np.zeros((rows, 0), dtype=bool)
        self._is_last = np.zeros((rows, 1), dtype=bool)
        begun = np.full((rows, 1), decoder.begin)
        self._after = self._feed(begun, np.ones((rows, 1), dtype=bool), np.zeros((rows, 1), dtype=np.int64))[0]
        self._before = self._after

    def offer(self, candidates: Ints) -> Floats:
        """See `Reader`; a candidate that is no row of the table is "something else"."""
        found = np.zeros(candidates.shape)
        first = np.zeros(candidates.shape, dtype=np.int64)
        goes_on = np.zeros(candidates.shape, dtype=bool)
        known = np.zeros(candidates.shape, dtype=bool)
        for row, words in enumerate(candidates.tolist()):
            for column, candidate in enumerate(words):
                if 0 <= candidate < len(self._decoder.rows):
                    spelled, joined = self._spelled(self._words[row], candidate)
                    known[row, column], goes_on[row, column], first[row, column] = True, joined, spelled[0]
                    found[row, column] = -_FURTHER_PIECE * (len(spelled) - 1)
                    if joined:
                        found[row, column] -= self._last_score[row]
        place = torch.from_numpy(first)
        after, before = (source.gather(1, place).double().numpy() for source in (self._after, self._before))
        return np.where(known, found + np.where(goes_on, before, after), 0.0)

    def take(self, parents: Ints, candidates: Ints) -> Floats:
        """See `Reader`."""
        before, after = self._before[parents], self._after[parents]
        words = [self._words[parent] for parent in parents]
        last_score = self._last_score[parents]
        self._cache.batch_select_indices(torch.from_numpy(parents))
        self._mask, self._is_last = self._mask[parents], self._is_last[parents]
        correction = np.zeros(len(parents))
        feed: list[tuple[int, ...]] = []
        for row, candidate in enumerate(candidates.tolist()):
            if not 0 <= candidate < len(self._decoder.rows):
                feed.append(())
                if candidate != ENDED:
                    # After something else no word can go on.
                    words[row], last_score[row] = "", 0.0
                    before[row] = after[row]
                    self._is_last[row] = False
                continue
            spelled, joined = self._spelled(words[row], candidate)
            feed.append(spelled)
            if joined:
                self._mask[row] &= ~self._is_last[row]
                words[row] += self._decoder.rows[candidate].removeprefix(_PIECE)
            else:
                before[row] = after[row]
                words[row] = self._decoder.rows[candidate].removeprefix(_PIECE)
            self._is_last[row] = False
        width = max(map(len, feed))
        self._before = before
        if width:
            lengths = np.array([len(spelled) for spelled in feed])
            given = np.arange(width) < lengths[:, None]
            ids = np.zeros((len(feed), width), dtype=np.int64)
            ids[given] = [token for spelled in feed for token in spelled]
            read = self._mask.sum(axis=1)
            self._is_last = np.concatenate([self._is_last, given], axis=1)
            logs, inner = self._feed(ids, given, read[:, None] + np.arange(width))
            some = lengths > 0
            rows = np.flatnonzero(some)
            first = before[torch.from_numpy(rows)].gather(1, torch.from_numpy(ids[rows, :1])).double().numpy()[:, 0]
            correction[rows] = inner[rows] + _FURTHER_PIECE * (lengths[rows] - 1)
            last_score = np.where(some, 0.0, last_score)
            last_score[rows] = first + inner[rows]
            after = torch.where(torch.from_numpy(some)[:, None], logs, after)
        self._after, self._words, self._last_score = after, words, last_score
        return correction

    def _spelled(self, word: str, candidate: int) -> tuple[tuple[int, ...], bool]:
        """The decoder's pieces of the word that a candidate ends, and whether it goes on the last word."""
        written = self._decoder.rows[candidate]
        joined = written.startswith(_PIECE) and bool(word)
        return self._decoder.spelled((word if joined else "") + written.removeprefix(_PIECE)), joined

    @torch.inference_mode()
    def _feed(self, ids: Ints, given: NDArray[np.bool_], positions: Ints) -> tuple[Tensor, Floats]:
        """Read tokens: log P of what follows the last of each row, (R, V), and the sum of log P within, (R,)."""
        network = self._decoder.network
        self._mask = np.concatenate([self._mask, given], axis=1)
        states = network.model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(self._mask.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
            **with_cache(network.model, self._cache),
        ).last_hidden_state
        lengths = given.sum(axis=1)
        rows = torch.arange(len(ids))
        last = network.lm_head(states[rows, torch.from_numpy(np.maximum(lengths - 1, 0))]).log_softmax(dim=-1)
        inner = np.zeros(len(ids))
        row, column = np.nonzero(given[:, 1:])
        if len(row):
            logs = network.lm_head(states[torch.from_numpy(row), torch.from_numpy(column)]).log_softmax(dim=-1)
            said = logs.gather(1, torch.from_numpy(ids[row, column + 1])[:, None]).double().numpy()[:, 0]
            np.add.at(inner, row, said)
        return last, inner

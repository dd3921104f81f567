"""A masked language model of the attacker's own text: how likely a token is among all others of its sentence.

No package carries a masked language model of full size; the small BERT of the tests has a head that was tuned for
search, so that it names topics and not words. So the attacker trains: that BERT where it has the vocabulary, else a
small fresh transformer, on his own text, a quarter of the tokens hidden at a time. MiniLM has no such head:
its own would have to be trained from nothing. What the attack recovers is in docs/results/attacks.md.

A decoder as the reader of a beam: what a large language model expects next, over the words of another vocabulary.

The privatized text is in pieces of one vocabulary and the decoder reads another, so they meet at words. A piece that
begins a word is offered as the whole word; where a piece goes on ("##y"), the word before it is taken back and the
longer one read in its place, which costs nothing but that word: its keys and values are masked out of the cache.

An offer looks at the first of the decoder's own pieces and guesses at the rest; the exact value follows when a word is
taken. "Something else" is offered at 0 and adds no word, so a later word follows on the last that was read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertForMaskedLM, DynamicCache

from rapt.audit.language.decoders import find_decoder
from rapt.audit.language.layout import batch_texts
from rapt.audit.language.search import ENDED
from rapt.errors import VocabularyError
from rapt.public_models import find_model_folder
from rapt.service.backbone.library import make_cache_arguments, quiet
from rapt.service.backbone.placement import choose_device, move_to
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, batch_by_length
from rapt.wire.model_files import make_tokenizer
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Tokens that are read in training.
TRAINED_TOKENS: Final = 150_000
_MOST_EPOCHS: Final = 8
_HIDDEN: Final = 0.25
_BATCH: Final = 32
_RISING_STEPS: Final = 20
_RATE: Final = 5e-4
_HEAD_RATE: Final = 1e-3
_WIDTH: Final = 64
_LAYERS: Final = 2
_PRETRAINED: Final = "bert-tiny"


@dataclass(frozen=True, eq=False)
class MaskedLanguageModel:
    """A trained masked language model.

    Attributes:
        network: (B, T) ids and which of them are tokens -> (B, T, h) states and the function that reads them.
        remark: Description of the model for the report.
        begin, end, hidden: Ids that stand around a text, and in the place of a token that is asked about.
    """

    network: _Pretrained | _Fresh
    remark: str
    begin: int
    end: int
    hidden: int

    def log_probability(self, tokens: Ints, asked: NDArray[np.bool_], candidates: Ints, *, lengths: Ints) -> Floats:
        """Log P(candidate | the tokens of its text that are not asked), (asked, K).

        Args:
            tokens: Tokens of all texts; what is no row of the table counts as hidden, (n,).
            asked: True for each token that is hidden and asked about, (n,).
            candidates: Candidates of the asked tokens, rows of the table, (asked, K).
            lengths: Lengths of each text, sum n.
        """
        found = np.empty(candidates.shape)
        row = np.cumsum(asked) - 1
        hidden = np.where(asked | (tokens >= self.network.size), self.hidden, tokens)
        starts = np.cumsum(lengths) - lengths
        wanted = np.add.reduceat(asked, starts[lengths > 0]) if lengths.any() else np.empty(0)
        busy = np.flatnonzero(lengths > 0)[wanted > 0]
        with torch.inference_mode():
            for group in batch_texts(lengths, busy, together=_BATCH):
                ids, inside, places = self._pad(hidden, starts[group], lengths[group])
                states = self.network.states(ids, inside)
                here = asked[np.maximum(places, 0)] & (places >= 0)
                at = row[places[here]]
                logs = self.network.read(states[torch.from_numpy(here)]).log_softmax(dim=-1)
                found[at] = logs.gather(1, torch.from_numpy(candidates[at])).double().numpy()
        return found

    def _pad(self, tokens: Ints, starts: Ints, lengths: Ints) -> tuple[Tensor, Tensor, Ints]:
        """Ids and inside, (B, T + 2), and the place of each among the tokens, -1 for none."""
        along = np.arange(int(lengths.max()) + 2)
        places = np.where((along >= 1) & (along <= lengths[:, None]), starts[:, None] + along - 1, -1)
        ids = np.where(places >= 0, tokens[places], np.where(along == 0, self.begin, self.end))
        return torch.from_numpy(ids), torch.from_numpy(along <= lengths[:, None] + 1), places


class _Pretrained(nn.Module):
    """The small BERT with its head."""

    def __init__(self, bert: BertForMaskedLM) -> None:
        super().__init__()
        self.bert, self.cls, self.size = bert.bert, bert.cls, int(bert.config.vocab_size)

    def states(self, ids: Tensor, inside: Tensor) -> Tensor:
        found: Tensor = self.bert(input_ids=ids, attention_mask=inside.long()).last_hidden_state
        return found

    def read(self, states: Tensor) -> Tensor:
        found: Tensor = self.cls(states)
        return found


class _Fresh(nn.Module):
    """A small transformer; three ids follow those of the table: begin, end, hidden."""

    def __init__(self, size: int, *, positions: int) -> None:
        super().__init__()
        self.size = size
        self.words = nn.Embedding(size + 3, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, size)

    def states(self, ids: Tensor, inside: Tensor) -> Tensor:
        found: Tensor = self.layers(self.words(ids) + self.positions[: ids.shape[1]], src_key_padding_mask=~inside)
        return found

    def read(self, states: Tensor) -> Tensor:
        found: Tensor = self.head(states)
        return found


def train_masked_language_model(
    bundle: VocabularyBundle,
    texts: Sequence[Ints],
    *,
    longest: int,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> MaskedLanguageModel:
    """A masked language model of these texts.

    Args:
        bundle: The public vocabulary.
        texts: The attacker's own, rows of the table; none is empty.
        longest: Tokens of the longest text that it will be asked about.
        seed: Seed of initialization, order and what is hidden.
        on_progress: Called with the share done.
    """
    rng = np.random.default_rng(seed)
    longest = max([longest, *map(len, texts)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make_untrained(bundle, longest=longest)
        network = model.network
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        flat = np.concatenate([np.empty(0, dtype=np.int64), *texts])
        starts = np.cumsum(lengths) - lengths
        visits = min(TRAINED_TOKENS, _MOST_EPOCHS * len(flat))
        bodies = {name: p for name, p in network.named_parameters() if not name.startswith(("cls", "head"))}
        heads = {name: p for name, p in network.named_parameters() if name.startswith(("cls", "head"))}
        trainer = Trainer(
            [ParameterGroup(bodies, _RATE), ParameterGroup(heads, _HEAD_RATE)], way_out="leave the attack out"
        )
        read = 0

        def draw_batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            """Ids, which of them are tokens, and which are to be hidden; until enough is read."""
            nonlocal read
            while read < visits:
                for group in batch_by_length(lengths, size=_BATCH, permute=rng.permutation):
                    ids, inside, places = model._pad(flat, starts[group], lengths[group])
                    hidden = torch.from_numpy((rng.random(places.shape) < _HIDDEN) & (places >= 0))
                    if hidden.any():
                        yield ids, inside, hidden
                    read += int(lengths[group].sum())
                    if read >= visits:
                        return

        def descend(batch: tuple[Tensor, Tensor, Tensor]) -> Losses:
            ids, inside, hidden = batch
            states = network.states(ids.masked_fill(hidden, model.hidden), inside)
            return back_propagate(nn.functional.cross_entropy(network.read(states[hidden]), ids[hidden]))

        network.train()
        for _ in trainer.follow(
            draw_batches(), descend, rate=lambda step: min(1.0, step / _RISING_STEPS) * (1 - read / visits)
        ):
            if on_progress is not None:
                on_progress(read / visits)
        network.eval()
    return MaskedLanguageModel(
        network, f"{model.remark}, trained on {len(flat):,} tokens", model.begin, model.end, model.hidden
    )


def has_vocabulary_of(bundle: VocabularyBundle, *, model: str = _PRETRAINED) -> bool:
    """Whether a public model is installed and has the vocabulary of this bundle, id for id."""
    try:
        ours, theirs = (
            json.loads(content)["model"]["vocab"]
            for content in (bundle.tokenizer_json, (find_model_folder(model) / "tokenizer.json").read_bytes())
        )
    except (VocabularyError, OSError, ValueError, KeyError, TypeError):
        return False
    return bool(ours == theirs)


def _make_untrained(bundle: VocabularyBundle, *, longest: int) -> MaskedLanguageModel:
    if has_vocabulary_of(bundle):
        folder = find_model_folder(_PRETRAINED)
        names = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
        with quiet():
            bert: BertForMaskedLM = BertForMaskedLM.from_pretrained(str(folder), local_files_only=True)
        if longest + 2 <= bert.config.max_position_embeddings:
            return MaskedLanguageModel(
                _Pretrained(bert), f"the masked language model {_PRETRAINED}", *(names[n] for n in _AROUND)
            )
    size = len(bundle.embeddings)
    fresh = _Fresh(size, positions=longest + 2)
    return MaskedLanguageModel(fresh, "a small masked language model", size, size + 1, size + 2)


_AROUND: Final = ("[CLS]", "[SEP]", "[MASK]")


_PIECE: Final = "##"
# Nats that each further piece of a word costs, until it is read: about the mean of words of SST-2.
_FURTHER_PIECE: Final = 2.0


class Decoder:
    """A decoder, its tokenizer, and the written form of every row of the other vocabulary."""

    def __init__(self, rows: Sequence[str], *, model: str) -> None:
        """Load the network from its folder, onto a GPU where there is one or `RAPT_DEVICE` names it.

        Args:
            rows: Written form of each row of the table: words, and pieces that begin with "##".
            model: A decoder: a public model, a folder in Hugging Face's layout, or a name in the local cache.

        Raises:
            VocabularyError: The files of the model are missing, or it is no decoder.
        """
        folder = find_decoder(model)
        self.rows = tuple(rows)
        self.tokenizer = make_tokenizer((folder / "tokenizer.json").read_bytes(), model=model)
        self.begin = _find_beginning(json.loads((folder / "config.json").read_bytes()))
        with quiet():
            whole = AutoModelForCausalLM.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        self.network = whole.requires_grad_(False)
        move_to(choose_device("auto"), self.network, model=model)
        self.network.train(False)
        self.spelled = lru_cache(maxsize=200_000)(self._spell)

    def _spell(self, word: str) -> tuple[int, ...]:
        # As after another word: some tokenizers write the space before a word, others a mark.
        before = self.tokenizer.encode("a", add_special_tokens=False).ids
        after = self.tokenizer.encode("a " + word, add_special_tokens=False).ids
        return tuple(after[len(before) :]) if after[: len(before)] == before else tuple(after)

    def reader(self, rows: int) -> DecoderReader:
        """A reader of so many rows that have read nothing."""
        return DecoderReader(self, rows)


def _find_beginning(config: dict[str, object]) -> int:
    """The token that a decoder reads before a text: its own for that, else the one that ends texts."""
    for name in ("bos_token_id", "eos_token_id"):
        named = config.get(name)
        first = named[0] if isinstance(named, list) and named else named
        if type(first) is int:
            return first
    raise VocabularyError("a language model must name a token that begins or ends a text; complete its config.json")


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
                    spelled, joined = self._spell_word(self._words[row], candidate)
                    known[row, column], goes_on[row, column], first[row, column] = True, joined, spelled[0]
                    found[row, column] = -_FURTHER_PIECE * (len(spelled) - 1)
                    if joined:
                        found[row, column] -= self._last_score[row]
        place = torch.from_numpy(first)
        after, before = (source.gather(1, place).double().numpy() for source in (self._after, self._before))
        return np.where(known, found + np.where(goes_on, before, after), 0.0)

    def take(self, parents: Ints, candidates: Ints) -> Floats:
        """Continue the rows `parents` by `candidates`; see `Reader`."""
        before, after = self._before[parents], self._after[parents]
        words = [self._words[parent] for parent in parents]
        last_score = self._last_score[parents]
        self._cache.batch_select_indices(torch.from_numpy(parents).to(self._decoder.network.device))
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
            spelled, joined = self._spell_word(words[row], candidate)
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

    def _spell_word(self, word: str, candidate: int) -> tuple[tuple[int, ...], bool]:
        """The decoder's pieces of the word that a candidate ends, and whether it goes on the last word."""
        written = self._decoder.rows[candidate]
        joined = written.startswith(_PIECE) and bool(word)
        return self._decoder.spelled((word if joined else "") + written.removeprefix(_PIECE)), joined

    @torch.inference_mode()
    def _feed(self, ids: Ints, given: NDArray[np.bool_], positions: Ints) -> tuple[Tensor, Floats]:
        """Read tokens: log P of what follows the last of each row, (R, V), and the sum of log P within, (R,)."""
        network = self._decoder.network
        place = network.device
        self._mask = np.concatenate([self._mask, given], axis=1)
        logits = network(
            input_ids=torch.from_numpy(ids).to(place),
            attention_mask=torch.from_numpy(self._mask.astype(np.int64)).to(place),
            position_ids=torch.from_numpy(positions).to(place),
            **make_cache_arguments(network, self._cache),
        ).logits
        lengths = given.sum(axis=1)
        rows = torch.arange(len(ids))
        last = logits[rows, torch.from_numpy(np.maximum(lengths - 1, 0))].log_softmax(dim=-1).cpu()
        inner = np.zeros(len(ids))
        row, column = np.nonzero(given[:, 1:])
        if len(row):
            logs = logits[torch.from_numpy(row), torch.from_numpy(column)].log_softmax(dim=-1).cpu()
            said = logs.gather(1, torch.from_numpy(ids[row, column + 1])[:, None]).double().numpy()[:, 0]
            np.add.at(inner, row, said)
        return last, inner

"""A masked language model of the attacker's own text: how likely a token is among all others of its sentence.

No package carries a masked language model of full size; the small BERT of the tests has a head that was tuned for
search, so that it names topics and not words. So the attacker trains: that BERT where it has the vocabulary, else a
small fresh transformer, on his own text, a quarter of the tokens hidden at a time. MiniLM has no such head:
its own would have to be trained from nothing. What the attack recovers is in docs/results/attacks.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertForMaskedLM

from rapt.audit.language.layout import batches
from rapt.errors import VocabularyError
from rapt.public_models import model_directory
from rapt.service.model.library import quiet
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Tokens that are read in training.
TRAINED_TOKENS: Final = 150_000
_MOST_EPOCHS: Final = 8
_HIDDEN: Final = 0.25
_BATCH: Final = 32
_RATE: Final = 5e-4
_HEAD_RATE: Final = 1e-3
_WIDTH: Final = 64
_LAYERS: Final = 2
_PRETRAINED: Final = "bert-tiny"


@dataclass(frozen=True, eq=False)
class MaskedLanguageModel:
    """A trained model.

    Attributes:
        network: (B, T) ids and which of them are tokens -> (B, T, h) states and the function that reads them.
        remark: What it is, for the report.
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
            tokens: Of all texts; what is no row of the table counts as hidden, (n,).
            asked: Which are hidden and asked about, (n,).
            candidates: Of the asked tokens, rows of the table, (asked, K).
            lengths: Of each text, sum n.
        """
        found = np.empty(candidates.shape)
        row = np.cumsum(asked) - 1
        hidden = np.where(asked | (tokens >= self.network.size), self.hidden, tokens)
        starts = np.cumsum(lengths) - lengths
        wanted = np.add.reduceat(asked, starts[lengths > 0]) if lengths.any() else np.empty(0)
        busy = np.flatnonzero(lengths > 0)[wanted > 0]
        with torch.inference_mode():
            for group in batches(lengths, busy, together=_BATCH):
                ids, inside, places = self._padded(hidden, starts[group], lengths[group])
                states = self.network.states(ids, inside)
                here = asked[np.maximum(places, 0)] & (places >= 0)
                at = row[places[here]]
                logs = self.network.read(states[torch.from_numpy(here)]).log_softmax(dim=-1)
                found[at] = logs.gather(1, torch.from_numpy(candidates[at])).double().numpy()
        return found

    def _padded(self, tokens: Ints, starts: Ints, lengths: Ints) -> tuple[Tensor, Tensor, Ints]:
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
        seed: Of initialization, order and what is hidden.
        on_progress: Called with the share done.
    """
    rng = np.random.default_rng(seed)
    longest = max([longest, *map(len, texts)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _untrained(bundle, longest=longest)
        network = model.network
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        flat = np.concatenate([np.empty(0, dtype=np.int64), *texts])
        starts = np.cumsum(lengths) - lengths
        visits = min(TRAINED_TOKENS, _MOST_EPOCHS * len(flat))
        bodies = [p for name, p in network.named_parameters() if not name.startswith(("cls", "head"))]
        heads = [p for name, p in network.named_parameters() if name.startswith(("cls", "head"))]
        rates = (_RATE, _HEAD_RATE)
        optimizer = torch.optim.AdamW(
            [{"params": bodies, "lr": _RATE}, {"params": heads, "lr": _HEAD_RATE}], weight_decay=0.01
        )
        network.train()
        read = steps = 0
        while read < visits:
            groups = list(batches(lengths, rng.permutation(len(lengths)), together=_BATCH))
            for place in rng.permutation(len(groups)):
                if read >= visits:
                    break
                group = groups[place]
                for part, top in zip(optimizer.param_groups, rates, strict=True):
                    part["lr"] = top * min(1.0, (steps + 1) / 20) * (1 - read / visits)
                ids, inside, places = model._padded(flat, starts[group], lengths[group])
                hidden = torch.from_numpy((rng.random(places.shape) < _HIDDEN) & (places >= 0))
                if hidden.any():
                    wanted = ids[hidden]
                    states = network.states(ids.masked_fill(hidden, model.hidden), inside)
                    loss = nn.functional.cross_entropy(network.read(states[hidden]), wanted)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                read, steps = read + int(lengths[group].sum()), steps + 1
                if on_progress is not None:
                    on_progress(min(1.0, read / visits))
        network.eval()
    return MaskedLanguageModel(
        network, f"{model.remark}, trained on {len(flat):,} tokens", model.begin, model.end, model.hidden
    )


def same_vocabulary(bundle: VocabularyBundle, *, model: str = _PRETRAINED) -> bool:
    """Whether a public model is installed and has the vocabulary of this bundle, id for id."""
    try:
        ours, theirs = (
            json.loads(content)["model"]["vocab"]
            for content in (bundle.tokenizer_json, (model_directory(model) / "tokenizer.json").read_bytes())
        )
    except (VocabularyError, OSError, ValueError, KeyError, TypeError):
        return False
    return bool(ours == theirs)


def _untrained(bundle: VocabularyBundle, *, longest: int) -> MaskedLanguageModel:
    if same_vocabulary(bundle):
        folder = model_directory(_PRETRAINED)
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

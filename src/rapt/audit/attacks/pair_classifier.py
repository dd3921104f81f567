"""The classifier of Tong et al.'s attack: is this candidate the word that stood here? Imported only where it runs.

It reads [CLS] y [SEP] y' [SEP], where y is the privatized sentence and y' the same with a candidate in one place, and
answers with a probability.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertModel

from rapt.audit.attacks.denoiser_training import load_pretrained_encoder
from rapt.audit.language.layout import number_tokens
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, scale_rate
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Paper: BERT-base, 3 epochs at 5e-5, a hundred privatizations of each sentence. Ours: the small BERT of two layers
# where it has the vocabulary, else a small fresh transformer; one privatization of more sentences, and rates that such
# networks need. Effect: a classifier that knows less of the language.
_EPOCHS: Final = 3
_RATE: Final = 5e-4
# Tokens that are asked about in training, each with its true word, if it is a candidate, and one wrong candidate.
_TRAINED_TOKENS: Final = 12_000
_BATCH: Final = 64
_TOGETHER: Final = 512
_WIDTH: Final = 64
_LAYERS: Final = 2


class _Fresh(nn.Module):
    """A small transformer over pairs of sentences."""

    def __init__(self, table: Tensor, *, positions: int) -> None:
        super().__init__()
        marks = table.mean(dim=0, keepdim=True)
        self.register_buffer("table", torch.cat([table, marks, -marks]))
        self.project = nn.Linear(table.shape[1], _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, _WIDTH))
        self.sentences = nn.Parameter(0.02 * torch.randn(2, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Tensor, sentence: Tensor) -> Tensor:
        words = self.project(nn.functional.embedding(ids, self.get_buffer("table")))
        # Both sentences have the same positions, so that a place is found again in the other one.
        along = torch.arange(ids.shape[1]) - sentence * (ids.shape[1] // 2)
        found: Tensor = self.layers(words + self.positions[along] + self.sentences[sentence])
        return found[:, 0]


class _Pretrained(nn.Module):
    """The small BERT, whose second sentence has a type of its own."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, sentence: Tensor) -> Tensor:
        found: Tensor = self.bert(input_ids=ids, token_type_ids=sentence.expand(len(ids), -1)).last_hidden_state
        return found[:, 0]


class _Network(nn.Module):
    """The logit of "right", one for each pair."""

    def __init__(self, encoder: nn.Module, *, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 1)

    def forward(self, ids: Tensor, sentence: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(ids, sentence))[:, 0]
        return found


@dataclass(frozen=True, eq=False)
class PairClassifier:
    """A trained classifier of candidates.

    Attributes:
        network: The trained network, in evaluation mode.
        remark: Description of the network for the report.
        begin, end: Ids around the sentences.
    """

    network: _Network
    remark: str
    begin: int
    end: int

    def log_probability(
        self,
        seen: Ints,
        candidates: Ints,
        *,
        lengths: Ints,
        on_progress: Callable[[float], None] | None = None,
    ) -> Floats:
        """Log probability of "right" for each candidate of each token, (n, K).

        Args:
            seen: Privatized tokens, (n,).
            candidates: Rows of the table, (n, K).
            lengths: Tokens of each text, sum n.
            on_progress: Called with the share done.
        """
        n, width = candidates.shape
        found = np.empty(candidates.size)
        done = 0
        with torch.inference_mode():
            for asked in _group_by_length(np.repeat(_measure_lengths(lengths), width), together=_TOGETHER):
                logits = self.network(*self._make_pairs(seen, lengths, asked // width, candidates.ravel()[asked]))
                found[asked] = nn.functional.logsigmoid(logits).double().numpy()
                done += len(asked)
                if on_progress is not None:
                    on_progress(done / len(found))
        return found.reshape(n, width)

    def _make_pairs(self, seen: Ints, lengths: Ints, asked: Ints, candidates: Ints) -> tuple[Tensor, Tensor]:
        """Ids of pairs, (B, 2T + 3), and which sentence each place belongs to, (2T + 3,).

        The asked tokens stand in texts of one length.
        """
        place = number_tokens(lengths)[asked]
        length = int(_measure_lengths(lengths)[asked[0]])
        text = seen[(asked - place)[:, None] + np.arange(length)]
        second = text.copy()
        second[np.arange(len(asked)), place] = candidates
        begin, end = (np.full((len(asked), 1), token) for token in (self.begin, self.end))
        ids = np.concatenate([begin, text, end, second, end], axis=1)
        sentence = (np.arange(ids.shape[1]) >= length + 2).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(sentence)


def train_pair_classifier(
    bundle: VocabularyBundle,
    *,
    seen: Ints,
    candidates: Ints,
    truth: Ints,
    lengths: Ints,
    longest: int,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> PairClassifier:
    """A classifier that was trained on texts whose truth the attacker knows.

    Args:
        bundle: The public vocabulary.
        seen: Privatized tokens of his own texts, (n,).
        candidates: Candidates of each, the likeliest without context, (n, K).
        truth: True tokens, (n,).
        lengths: Tokens of each text.
        longest: Tokens of the longest text that is ever asked about.
        seed: Seed of initialization, choice and order.
        on_progress: Called with the share done.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _make_untrained(bundle, longest=longest)
        asked, chosen, right = _make_examples(candidates, truth, rng=rng)
        of_each = _measure_lengths(lengths)
        steps = _EPOCHS * sum(1 for _ in _group_by_length(of_each[asked], together=_BATCH))
        trained = ParameterGroup(dict(classifier.network.named_parameters()), _RATE)
        trainer = Trainer([trained], way_out="leave the attack out")

        def draw_batches() -> Iterator[Ints]:
            for _ in range(_EPOCHS):
                order = rng.permutation(len(asked))
                drawn = list(_group_by_length(of_each[asked[order]], together=_BATCH))
                yield from (order[drawn[turn]] for turn in rng.permutation(len(drawn)))

        def descend(rows: Ints) -> Losses:
            logits = classifier.network(*classifier._make_pairs(seen, lengths, asked[rows], chosen[rows]))
            return back_propagate(nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(right[rows])))

        classifier.network.train()
        for _ in trainer.follow(draw_batches(), descend, rate=lambda step: scale_rate(step, steps, rise=0.0)):
            if on_progress is not None:
                on_progress(trainer.steps / steps)
        classifier.network.eval()
    return PairClassifier(
        classifier.network, f"{classifier.remark}, trained on {len(asked):,} pairs", classifier.begin, classifier.end
    )


def _make_examples(
    candidates: Ints, truth: Ints, *, rng: np.random.Generator
) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Tokens that are asked about, the candidates, and which are right."""
    tokens = rng.permutation(len(truth))[:_TRAINED_TOKENS]
    hits = candidates[tokens] == truth[tokens, None]
    there = hits.any(axis=1)
    drawn = rng.integers(candidates.shape[1], size=len(tokens))
    wrong = ~hits[np.arange(len(tokens)), drawn]
    asked = np.concatenate([tokens[there], tokens[wrong]])
    chosen = np.concatenate([truth[tokens[there]], candidates[tokens, drawn][wrong]])
    right = np.concatenate([np.ones(int(there.sum())), np.zeros(int(wrong.sum()))]).astype(np.float32)
    return asked, chosen, right


def _make_untrained(bundle: VocabularyBundle, *, longest: int) -> PairClassifier:
    bert = load_pretrained_encoder(bundle, longest=2 * longest + 3)
    if bert is not None:
        names = json.loads(bundle.tokenizer_json)["model"]["vocab"]
        network = _Network(_Pretrained(bert), width=bert.config.hidden_size)
        return PairClassifier(network, "the small BERT as a classifier of candidates", names["[CLS]"], names["[SEP]"])
    table = torch.from_numpy(bundle.embeddings.copy())
    network = _Network(_Fresh(table, positions=longest + 3), width=_WIDTH)
    return PairClassifier(network, "a small classifier of candidates", len(table), len(table) + 1)


def _measure_lengths(lengths: Ints) -> Ints:
    return np.repeat(lengths, lengths)


def _group_by_length(lengths: Ints, *, together: int) -> Iterator[Ints]:
    """Places whose texts have one length, up to so many at once."""
    order = np.argsort(lengths, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        for start in range(0, len(group), together):
            yield group[start : start + together]

"""The network of the learned denoiser, and how it is trained. Imported only where the attack runs: it needs torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertModel

from rapt.audit.language.layout import batch_texts, pad_places
from rapt.audit.language.networks import has_vocabulary_of
from rapt.public_models import find_model_folder
from rapt.service.backbone.library import quiet
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, batch_by_length, scale_rate
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# The epoch of the smallest loss on held-out text is kept, so more of them cost time alone.
_EPOCHS: Final = 3
_BATCH: Final = 32
_RATE: Final = 5e-4
_HEAD_RATE: Final = 1e-3
_RISE: Final = 0.1
_HELD_OUT: Final = 0.1
_LEAST_BELIEF: Final = -30.0
# Where no pretrained encoder has the vocabulary.
_WIDTH: Final = 64
_LAYERS: Final = 2
_PRETRAINED: Final = "bert-tiny"


class _Fresh(nn.Module):
    """A small transformer over vectors, with positions of its own."""

    def __init__(self, *, dim: int, positions: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)

    def forward(self, vectors: Tensor, inside: Tensor) -> Tensor:
        found: Tensor = self.layers(
            self.project(vectors) + self.positions[: vectors.shape[1]], src_key_padding_mask=~inside
        )
        return found


class _Pretrained(nn.Module):
    """A BERT whose input vectors are mixtures of its own words."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, vectors: Tensor, inside: Tensor) -> Tensor:
        found: Tensor = self.bert(inputs_embeds=vectors, attention_mask=inside.long()).last_hidden_state
        return found


class _Network(nn.Module):
    """Beliefs in, corrected beliefs out: belief + <f(h_t), E(x)>, which begins at the belief itself."""

    def __init__(self, encoder: nn.Module, table: Tensor, *, width: int) -> None:
        """Take the encoder and the table of word vectors, (V, h); two rows are added: boundary, anything."""
        super().__init__()
        self.encoder = encoder
        extra = torch.stack([torch.zeros(table.shape[1]), table.mean(dim=0)])
        self.register_buffer("table", torch.cat([table, extra]))
        self.trust = nn.Parameter(torch.ones(()))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.words, self.anything = nn.Linear(width, table.shape[1]), nn.Linear(width, 1)
        for layer in (self.words, self.anything):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, candidates: Tensor, beliefs: Tensor, inside: Tensor) -> Tensor:
        vectors = nn.functional.embedding(candidates, self.get_buffer("table"))  # (B, T, K + 1, h)
        mixture = (beliefs.exp()[..., None] * vectors).sum(dim=2)
        states = self.head(self.encoder(mixture, inside))
        correction = (self.words(states)[:, :, None] * vectors[:, :, :-1]).sum(dim=-1)
        found: Tensor = self.trust * beliefs + torch.cat([correction, self.anything(states)], dim=-1)
        return found


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network that corrects beliefs.

    Attributes:
        network: The trained network, in evaluation mode.
        remark: Description for the report: the network, and its gain on text that it was not trained on.
    """

    network: nn.Module
    remark: str

    def correct(self, candidates: Ints, beliefs: Floats, *, lengths: Ints) -> Floats:
        """The corrected log beliefs of texts, (n, K + 1)."""
        found = np.empty(beliefs.shape)
        with torch.inference_mode():
            for group in batch_texts(lengths, np.arange(len(lengths)), together=_BATCH):
                places, inside = pad_places(lengths, group)
                logits = self.network(*_make_inputs(candidates, beliefs, places, inside)).log_softmax(dim=-1)
                found[places[inside]] = logits.double().numpy()[inside]
        return found


def train_denoiser(
    bundle: VocabularyBundle,
    *,
    candidates: Ints,
    beliefs: Floats,
    truth: Ints,
    lengths: Ints,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> Denoiser:
    """A network that was trained on texts whose truth the attacker knows.

    Args:
        bundle: The public vocabulary.
        candidates: (n, K + 1), the last column being `anything`.
        beliefs: log P(candidate), (n, K + 1).
        truth: (n,), the attacker's own words.
        lengths: Tokens of each text.
        seed: Seed of initialization and order.
        on_progress: Called with the share done.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, what = _make_network(bundle, longest=int(lengths.max()))
        hits = candidates[:, :-1] == truth[:, None]
        target = np.where(hits.any(axis=1), hits.argmax(axis=1), candidates.shape[1] - 1)
        order = rng.permutation(len(lengths))
        held = order[: max(1, round(_HELD_OUT * len(order)))]
        training = order[len(held) :]
        training = training[lengths[training] > 0]
        if not len(training):
            return Denoiser(network.eval(), f"{what}, not trained: too few texts")
        before = best = _compute_loss(network, candidates, beliefs, target, lengths, held)
        state = copy.deepcopy(network.state_dict())
        trainer = Trainer(
            [
                ParameterGroup({n: p for n, p in network.named_parameters() if n.startswith("encoder.")}, _RATE),
                ParameterGroup(
                    {n: p for n, p in network.named_parameters() if not n.startswith("encoder.")}, _HEAD_RATE
                ),
            ],
            way_out="leave the attack out",
        )
        steps = _EPOCHS * -(-len(training) // _BATCH)

        def descend(places: Ints) -> Losses:
            return back_propagate(_batch_loss(network, candidates, beliefs, target, lengths, training[places]))

        for _ in range(_EPOCHS):
            network.train()
            batches = batch_by_length(lengths[training], size=_BATCH, permute=rng.permutation)
            # Short runs end where they are best.
            for _ in trainer.follow(batches, descend, rate=lambda step: scale_rate(step, steps, rise=_RISE)):
                if on_progress is not None:
                    on_progress(trainer.steps / steps)
            now = _compute_loss(network, candidates, beliefs, target, lengths, held)
            if now < best:
                best, state = now, copy.deepcopy(network.state_dict())
        network.load_state_dict(state)
    return Denoiser(network.eval(), f"{what}; held-out loss {before:.3f} before and {best:.3f} nats after training")


def _make_network(bundle: VocabularyBundle, *, longest: int) -> tuple[_Network, str]:
    bert = load_pretrained_encoder(bundle, longest=longest)
    if bert is not None:
        words = bert.embeddings.word_embeddings.weight.requires_grad_(False)
        table = words.detach().clone()
        return _Network(_Pretrained(bert), table, width=table.shape[1]), f"the pretrained encoder {_PRETRAINED}"
    table = torch.from_numpy(bundle.embeddings.copy())
    return _Network(_Fresh(dim=table.shape[1], positions=longest), table, width=_WIDTH), "a small fresh transformer"


def load_pretrained_encoder(bundle: VocabularyBundle, *, longest: int) -> BertModel | None:
    """The small BERT where it is installed, has this vocabulary and takes texts so long."""
    if not has_vocabulary_of(bundle, model=_PRETRAINED):
        return None
    folder = find_model_folder(_PRETRAINED)
    with quiet():
        bert: BertModel = BertModel.from_pretrained(str(folder), add_pooling_layer=False, local_files_only=True)
    return bert if longest <= bert.config.max_position_embeddings else None


def _compute_loss(
    network: _Network, candidates: Ints, beliefs: Floats, target: Ints, lengths: Ints, texts: Ints
) -> float:
    network.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for group in batch_texts(lengths, texts, together=_BATCH):
            count = int(lengths[group].sum())
            total += count * float(_batch_loss(network, candidates, beliefs, target, lengths, group))
            tokens += count
    return total / max(tokens, 1)


def _batch_loss(
    network: _Network, candidates: Ints, beliefs: Floats, target: Ints, lengths: Ints, group: Ints
) -> Tensor:
    places, inside = pad_places(lengths, group)
    logits = network(*_make_inputs(candidates, beliefs, places, inside))
    wanted = torch.from_numpy(np.where(inside, target[places], -100))
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def _make_inputs(candidates: Ints, beliefs: Floats, places: Ints, inside: NDArray[np.bool_]) -> tuple[Tensor, ...]:
    floor = np.maximum(beliefs[places], _LEAST_BELIEF).astype(np.float32)
    return torch.from_numpy(candidates[places]), torch.from_numpy(floor), torch.from_numpy(inside)

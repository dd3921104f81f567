"""P-tuning: a prompt that a small network makes out of P trainable vectors (Liu et al. 2021, "GPT Understands, Too").

The network ties the vectors to each other while they train and is then dropped: the adapter holds the prompt that it
made last, and works like any other prompt. Paper says: anchors among the vectors of the prompt, and a bidirectional
LSTM with an MLP behind it. We use: the same without anchors, or an MLP alone, as PEFT does.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from rapt.service.adapter.methods.method import (
    PROMPT_OPTIONS,
    Method,
    MethodSettings,
    linear,
    list_network_options,
    make_initial_vectors,
    uniform_,
)
from rapt.service.adapter.methods.prompt_tuning import PROMPT_FORM
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned


class PTuning(nn.Module):
    """P inputs, (P, h), and the network that makes a prompt of them."""

    def __init__(self, inputs: Tensor, *, recurrent: bool, hidden_size: int, generator: torch.Generator) -> None:
        """Start the inputs at given vectors, which are copied, and the network at small random weights."""
        super().__init__()
        width = inputs.shape[1]
        self.inputs = nn.Parameter(inputs.detach().clone().float())
        self.lstm: nn.LSTM | None = None
        between = width
        if recurrent:
            self.lstm = nn.LSTM(width, hidden_size, num_layers=2, bidirectional=True)
            uniform_(self.lstm, bound=hidden_size**-0.5, generator=generator)
            between = 2 * hidden_size
        self.mlp = nn.Sequential(
            linear(between, hidden_size, generator), nn.ReLU(), linear(hidden_size, width, generator)
        )

    def forward(self) -> Tuned:
        """The prompt that the network makes now."""
        states = self.inputs
        if self.lstm is not None:
            states, _ = self.lstm(states)
        return Tuned(prompt=self.mlp(states))


def make_p_tuning(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> PTuning:
    """The network and its inputs at their initial values."""
    return PTuning(
        make_initial_vectors(backbone, settings, labels, generator),
        recurrent=settings.reparametrization == "lstm",
        hidden_size=settings.reparametrization_size or backbone.hidden_size,
        generator=generator,
    )


def _count_parameters(backbone: Backbone, settings: MethodSettings) -> int:
    width = backbone.embedding_size
    inner = settings.reparametrization_size or backbone.hidden_size
    between, lstm = width, 0
    if settings.reparametrization == "lstm":
        # Two layers, two directions, four gates; the first linear layer reads both directions.
        lstm = 2 * 4 * inner * (width + inner + 2) + 2 * 4 * inner * (3 * inner + 2)
        between = 2 * inner
    return settings.prompt_length * width + lstm + inner * (between + 1) + width * (inner + 1)


_NETWORKS: Final = ("mlp", "lstm")

METHOD: Final = Method(
    title="soft prompt, by a network",
    make=make_p_tuning,
    parameters=_count_parameters,
    form=PROMPT_FORM,
    learning_rate=0.001,
    options=(*PROMPT_OPTIONS, *list_network_options(*_NETWORKS)),
    prompt="sequence",
    reparametrizations=_NETWORKS,
)

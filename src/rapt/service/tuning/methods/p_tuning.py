"""P-tuning: a prompt that a small network makes out of P trainable vectors (Liu et al. 2021, "GPT Understands, Too").

The network ties the vectors to each other while they train and is then dropped: the adapter holds the prompt that it
made last, and works like any other prompt. Paper says: anchors among the vectors of the prompt, and a bidirectional
LSTM with an MLP behind it. We use: the same without anchors, or an MLP alone, as PEFT does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.service.tuning.methods.initialization import initial_vectors, linear, uniform_
from rapt.service.tuning.tuning_config import TuningConfig


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
    backbone: Backbone, config: TuningConfig, labels: tuple[str, ...], generator: torch.Generator
) -> PTuning:
    """The network and its inputs at their initial values."""
    return PTuning(
        initial_vectors(backbone, config, labels, generator),
        recurrent=config.reparametrization == "lstm",
        hidden_size=config.reparametrization_size or backbone.hidden_size,
        generator=generator,
    )

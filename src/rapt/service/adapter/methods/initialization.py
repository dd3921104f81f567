"""Where a soft prompt or a prefix starts: at public words, or at random.

Lester et al. (2021, Sec. 3.2) found words better than random vectors, and the names of the classes best: a prompt then
starts where the backbone has been. Whatever the words are, they are public: drawn from the vocabulary, named as labels,
or given knowingly as `init_text`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapt.errors import TuningError
from rapt.service.adapter.methods.method import MethodSettings
from rapt.service.backbone.backbone import Backbone


def initial_vectors(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> Tensor:
    """P vectors at the place of word embeddings, (P, e), float32."""
    token_ids = initial_tokens(backbone, settings, labels, generator)
    if token_ids is not None:
        return backbone.word_embeddings[token_ids.to(backbone.device)].clone()
    spread = float(backbone.word_embeddings.std())
    return spread * torch.randn(settings.prompt_length, backbone.embedding_size, generator=generator)


def initial_tokens(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> Tensor | None:
    """The P tokens to start at, (P,), int64; None for initialization `random`.

    Fewer words than P are repeated from the first, more are cut off.

    Raises:
        TuningError: There are no words to start at.
    """
    if settings.initialization == "random":
        return None
    if settings.initialization == "vocabulary":
        eligible = torch.from_numpy(backbone.vocabulary.eligible.copy())
        return eligible[torch.randperm(len(eligible), generator=generator)[: settings.prompt_length]]
    words = (settings.init_text,) if settings.initialization == "text" else labels
    token_ids = [token for word in words for token in backbone.tokenize(word or "")]
    if not token_ids:
        raise TuningError(
            f"initialization {settings.initialization!r} must have words to start at, got tokens=0; "
            "choose initialization vocabulary"
        )
    repeats = -(-settings.prompt_length // len(token_ids))
    return torch.tensor((token_ids * repeats)[: settings.prompt_length])


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer at torch's usual uniform values, drawn from our generator and not from the global one."""
    layer = nn.Linear(inputs, outputs)
    uniform_(layer, bound=inputs**-0.5, generator=generator)
    return layer


def uniform_(module: nn.Module, *, bound: float, generator: torch.Generator) -> None:
    """Draw every parameter of a module from [-bound, bound], in the order of their names."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)

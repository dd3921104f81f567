"""Prompt tuning: P trainable vectors at the place of word embeddings (Lester et al. 2021; RAPT, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from rapt.service.adapter.methods.method import PROMPT_OPTIONS, Form, Method, Shape, make_initial_vectors
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.wire.adapter_files import AdapterCard

PROMPT: Final = "prompt_embeddings"


class PromptTuning(nn.Module):
    """P vectors of the backbone's width, all that is trained of its input. `vectors` is (P, h), float32."""

    def __init__(self, vectors: Tensor) -> None:
        """Take (P, h) initial vectors, which are copied."""
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float())

    def forward(self) -> Tuned:
        """The prompt as it is."""
        return Tuned(prompt=self.vectors)


def _list_shapes(card: AdapterCard, backbone: Backbone, found: Mapping[str, Shape]) -> dict[str, Shape]:
    return {PROMPT: (card.prompt_length, backbone.embedding_size)}


def _to_tensors(tuned: Tuned) -> dict[str, Tensor]:
    assert tuned.prompt is not None
    return {PROMPT: tuned.prompt}


def _describe_for_peft(card: AdapterCard, tuned: Tuned) -> dict[str, Any]:
    assert tuned.prompt is not None
    length, size = tuned.prompt.shape
    kind = {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1}
    return kind | {"num_virtual_tokens": length, "token_dim": size}


# A soft prompt has one form, whatever made it.
PROMPT_FORM: Final = Form(
    shapes=_list_shapes,
    to_tensors=_to_tensors,
    from_tensors=lambda tensors, card, backbone: Tuned(prompt=tensors[PROMPT]),
    peft=_describe_for_peft,
)

METHOD: Final = Method(
    title="soft prompt",
    make=lambda backbone, settings, labels, generator: PromptTuning(
        make_initial_vectors(backbone, settings, labels, generator)
    ),
    parameters=lambda backbone, settings: settings.prompt_length * backbone.embedding_size,
    form=PROMPT_FORM,
    # A prompt of raw embeddings needs a rate far above that of weights: its gradient comes through the whole model.
    # This one was searched for; those of the other methods are usual values of the literature.
    learning_rate=0.02,
    options=PROMPT_OPTIONS,
    prompt="sequence",
)

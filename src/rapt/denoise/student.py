"""Denoising by distillation: a student that sees privatized text learns the states that a teacher has of the clear one.

Both begin as the same backbone, of any architecture; of an encoder-decoder the first half, which reads the text.
Privatization replaces tokens one for one, so every position of the privatized text has a position of the clear text to
be compared with. The squared error is least for the mean of the teacher's states given the privatized text,
E[f(x)|M(x)]: the posterior mean under the public text as a prior and the mechanism as a channel, learned instead of
computed (the idea of post-processing by a denoiser is Qu et al. 2021's; theirs predicts tokens).
The table of word embeddings stays as it is, so the vocabulary and its hash do, and users notice nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rapt.errors import UsageError
from rapt.service.adapter.task_head import pool_text
from rapt.service.backbone.architectures import ARCHITECTURES
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, encode_with_prompts, lay_out
from rapt.service.backbone.opening import Precision, load_backbone


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the student is from the teacher, as a share of the teacher's own variance: 0 is perfect.

    Attributes:
        text: Error of the mean state of a text.
        tokens: Error of the states of its tokens.
    """

    text: Tensor
    tokens: Tensor

    @property
    def loss(self) -> Tensor:
        """Return the loss that training minimizes. Heads that pool need the first, heads that read words the second."""
        return self.text + self.tokens


class Student:
    """A copy of a backbone whose layers are trained, beside the frozen original."""

    def __init__(self, model: str, *, precision: Precision = "float32") -> None:
        """Load the backbone twice.

        Args:
            model: A name in `PUBLIC_MODELS` or a folder.
            precision: Type of the products in teacher and student; what is trained is kept in float32. `auto` as in
                `load_backbone`.

        Raises:
            UsageError: The architecture of the model is unknown.
            VocabularyError: The files of the model are missing.
        """
        self.teacher = load_backbone(model, precision=precision)
        if self.teacher.architecture not in ARCHITECTURES:
            raise UsageError(
                f"a model to be denoised must be of architecture {', '.join(ARCHITECTURES)}, got "
                f"{self.teacher.architecture!r}; choose another, or tune it as it is"
            )
        own: Backbone = load_backbone.__wrapped__(model, precision="float32")  # not the one everybody shares
        # The pass of our own gives the weights no gradient.
        self.backbone = replace(own, own_forward=None)
        self.layers = ARCHITECTURES[self.teacher.architecture]
        self.encoder = self.backbone.encoder
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(not name.startswith(self.layers.left_alone))
        self.soft_embeddings: Tensor | None = None

    def see_words_as(self, table: Tensor) -> None:
        """Let the student look words up in another table, (V, h) in float32: soft embeddings. The teacher does not."""
        self.soft_embeddings = table
        self.backbone = replace(self.backbone, word_embeddings=table.to(self.backbone.device))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}

    def measure_agreement(self, clear: Sequence[Sequence[int]], privatized: Sequence[Sequence[int]]) -> Agreement:
        """The errors on a batch; with a gradient to the student unless gradients are off.

        Args:
            clear: Content tokens of public texts, B sequences.
            privatized: The same texts privatized, token for token.
        """
        layout = self._lay_out(clear)
        with torch.no_grad():
            target = encode_with_prompts(self.teacher, layout, None)
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.teacher.dtype == torch.bfloat16):
            found = encode_with_prompts(self.backbone, self._lay_out(privatized), None)
        mask = layout.text_mask
        text = (pool_text(target, mask) - pool_text(found, mask)).square().mean()
        tokens = ((target - found).square().mean(dim=2) * mask).sum() / mask.sum()
        return Agreement(
            text=text / pool_text(target, mask).var(dim=0, correction=0).mean().clamp_min(1e-6),
            tokens=tokens / target[mask > 0].var(dim=0, correction=0).mean().clamp_min(1e-6),
        )

    def _lay_out(self, texts: Sequence[Sequence[int]]) -> Layout:
        count = len(texts)
        return lay_out(
            self.teacher, prompt_lengths=[0] * count, privatized_plain_tokens=[()] * count, texts=list(texts)
        )

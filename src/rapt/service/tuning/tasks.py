"""Tasks: where an answer is read off the backbone, and what it is compared with.

- `classification` is read at the mean of the text's states, in a decoder at the last, by a trained linear head; of a
  pair, outside a decoder, that head is given how the means of the two texts differ as well;
- `label_words` at a [MASK] behind the text, in T5's decoder or behind a decoder's cue, by the model's language head;
- `generation` at every place of the target, by the model's language head.

The first two give logits of C classes and differ only in where a vector is read and which head scores it, so one batch
serves both. A pair of sentences is not a task of its own: each of them takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from rapt.errors import TuningError
from rapt.service.adapter.task_head import TaskHead, compare_texts, pool_text
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, check_texts, lay_out
from rapt.service.backbone.steering import Steering
from rapt.service.tuning.label_correction import task_loss
from rapt.service.tuning.target_words import Generation
from rapt.service.tuning.task_outcome import Outcome
from rapt.wire.manifest import LabelPrivacy, Manifest
from rapt.wire.privatized_file import PrivatizedRecord

# Public words behind a text that ask a decoder for the label. Its continuation is then a word with a space before it.
DECODER_CUE: Final = "\nLabel:"


class Task(Protocol):
    """What a run learns to answer."""

    def check(self, backbone: Backbone, manifest: Manifest) -> None:
        """Refuse a file or a backbone that the task cannot work with (`TuningError`, `UsageError`)."""

    def make_head(
        self,
        backbone: Backbone,
        *,
        labels: tuple[str, ...],
        label_words: tuple[str, ...] | None,
        pairs: bool,
        generator: torch.Generator,
    ) -> nn.Module:
        """The head of a new adapter; its parameters that require a gradient are trained."""

    def check_record(
        self, backbone: Backbone, record: PrivatizedRecord, *, prompt_length: int, plain_tokens: int, position: int
    ) -> None:
        """Refuse a record that does not fit (`UsageError`)."""

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """The public tokens behind a text that ask for the answer."""

    def lay_out(
        self, backbone: Backbone, records: Sequence[PrivatizedRecord], *, prompt_lengths: Sequence[int], plain: bool
    ) -> Layout:
        """The layout of a batch for training; `plain` says whether its plain tokens take part."""

    def outcome(
        self,
        backbone: Backbone,
        states: Tensor,
        layout: Layout,
        records: Sequence[PrivatizedRecord],
        head: nn.Module,
        *,
        label_privacy: LabelPrivacy | None,
        steering: Steering | None = None,
    ) -> Outcome:
        """The loss of a batch whose states are (B, T, h)."""


@dataclass(frozen=True)
class Classes:
    """Both tasks that choose one of C classes.

    Attributes:
        by_words: Read by the model's language head at a place for a word, instead of by a trained head on the text.
    """

    by_words: bool

    def check(self, backbone: Backbone, manifest: Manifest) -> None:
        """Refuse a file without labels (`TuningError`), and words where there is no head for them (`UsageError`)."""
        if manifest.labels is None:
            raise TuningError("a file to tune on must have labels; privatize it again with --label-column")
        if self.by_words:
            backbone.require_language_head()

    def make_head(
        self,
        backbone: Backbone,
        *,
        labels: tuple[str, ...],
        label_words: tuple[str, ...] | None,
        pairs: bool,
        generator: torch.Generator,
    ) -> TaskHead:
        """A head that is trained, or one made of the label words' rows of the language head, which is not.

        Args:
            backbone: Frozen.
            labels: Names of the classes.
            label_words: A word for each class; None takes the names. Only read by words.
            pairs: Whether every record is of two texts.
            generator: Of the initial weights of a trained head.

        Raises:
            TuningError: A word for each class is needed, and they must begin differently.
        """
        compares = pairs and not self.by_words and backbone.kind != "decoder"  # whose last state has seen both
        head = TaskHead(hidden_size=backbone.hidden_size, classes=len(labels), generator=generator, compares=compares)
        if self.by_words:
            chosen = label_word_ids(backbone, label_words or labels, classes=len(labels))
            weight, bias = backbone.require_language_head().rows(torch.tensor(chosen, device=backbone.device))
            head.linear.weight.data, head.linear.bias.data = weight, bias
            head.requires_grad_(False)
        return head

    def check_record(
        self, backbone: Backbone, record: PrivatizedRecord, *, prompt_length: int, plain_tokens: int, position: int
    ) -> None:
        """Refuse a record that does not fit into the backbone, or has no text (`UsageError`)."""
        check_texts(
            backbone,
            record.token_ids,
            record.second_token_ids,
            prompt_length=prompt_length,
            plain_tokens=plain_tokens,
            position=position,
            other_tokens=len(self.cue(backbone)),
        )

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """The public tokens behind a text that ask for its label."""
        if not self.by_words:
            return ()
        frame = backbone.frame
        if backbone.kind == "decoder":
            return backbone.tokenize(DECODER_CUE)
        asked = frame.mask_id if backbone.kind == "encoder" else frame.sentinel_id
        return () if asked is None else (asked,)

    def lay_out(
        self, backbone: Backbone, records: Sequence[PrivatizedRecord], *, prompt_lengths: Sequence[int], plain: bool
    ) -> Layout:
        """The layout of a batch, in training and in prediction."""
        return lay_out(
            backbone,
            prompt_lengths=prompt_lengths,
            privatized_plain_tokens=[record.privatized_plain_tokens if plain else () for record in records],
            texts=[record.token_ids for record in records],
            second_texts=[record.second_token_ids for record in records],
            cues=[self.cue(backbone)] * len(records),
        )

    def wanted(self, backbone: Backbone, layout: Layout) -> Tensor | None:
        """Where an encoder's states are looked at, (B, T); None where more than the answer depends on them."""
        if backbone.kind != "encoder":
            return None
        if not self.by_words:
            return layout.text_mask
        columns = torch.arange(layout.token_ids.shape[1], device=layout.token_ids.device)
        return columns == layout.answer_column[:, None]

    def vectors(
        self,
        backbone: Backbone,
        states: Tensor,
        layout: Layout,
        *,
        steering: Steering | None = None,
        compared: bool = False,
    ) -> Tensor:
        """The vector of each row that its head scores, (B, T, h) -> (B, h), float32: `vectors W^T + b` are logits.

        Args:
            backbone: Which made the states.
            states: Of the last layer.
            layout: Of the batch.
            steering: Of the batch, where a decoder reads the states of an encoder.
            compared: Whether every row is a pair whose head compares, and its vector of size 3h.
        """
        if compared:
            return compare_texts(states, layout.text_mask, layout.segments)
        if not self.by_words:
            return answer_states(states, layout) if backbone.kind == "decoder" else pool_text(states, layout.text_mask)
        head = backbone.require_language_head()
        if backbone.kind != "encoder-decoder":
            return head.transformed(answer_states(states, layout))
        # T5 was trained to fill gaps: its decoder repeats the sentinel and goes on with what is missing.
        frame = backbone.frame
        asked = [*frame.decoder_start, *(() if frame.sentinel_id is None else (frame.sentinel_id,))]
        words = torch.tensor([asked] * len(states), device=states.device)
        decoded = backbone.decode(words, encoder_states=states, encoder_mask=layout.attention_mask, steering=steering)
        return head.transformed(decoded[:, -1])

    def outcome(
        self,
        backbone: Backbone,
        states: Tensor,
        layout: Layout,
        records: Sequence[PrivatizedRecord],
        head: nn.Module,
        *,
        label_privacy: LabelPrivacy | None,
        steering: Steering | None = None,
    ) -> Outcome:
        """Cross-entropy of the C classes, corrected for randomized labels; `right` counts rows."""
        compared = isinstance(head, TaskHead) and head.compares
        logits: Tensor = head(self.vectors(backbone, states, layout, steering=steering, compared=compared))
        labels = torch.tensor([record.label for record in records], device=states.device)
        return Outcome(
            loss=task_loss(logits, labels, label_privacy=label_privacy),
            right=(logits.argmax(dim=1) == labels).sum(),
            total=len(records),
        )


TASKS: Final[Mapping[str, Task]] = {
    "classification": Classes(by_words=False),
    "label_words": Classes(by_words=True),
    "generation": Generation(),
}


def answer_states(states: Tensor, layout: Layout) -> Tensor:
    """The state at each row's place for an answer, (B, T, h) -> (B, h)."""
    return states[torch.arange(len(states), device=states.device), layout.answer_column]


def label_word_ids(backbone: Backbone, words: Sequence[str], *, classes: int) -> tuple[int, ...]:
    """One token for each class: the first that is not common to all words.

    Raises:
        TuningError: There is not one word for each class, or two words have the same token or none.
    """
    if len(words) != classes:
        raise TuningError(f"there must be one label word for each of {classes} classes, got {len(words)}")
    pieces = [backbone.tokenize(" " + word if backbone.kind == "decoder" else word) for word in words]
    shortest = min(len(piece) for piece in pieces)
    common = next(
        (place for place in range(shortest) if len({piece[place] for piece in pieces}) > 1 or classes < 2), shortest
    )
    first = [piece[common] for piece in pieces if common < len(piece)]
    if len(set(first)) != classes:
        raise TuningError(
            f"label words must differ in their first token, got {len(set(first))} different ones for {classes} classes "
            f"of model={backbone.model!r}; choose other words"
        )
    return tuple(first)

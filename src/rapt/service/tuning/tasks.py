"""Tasks: where an answer is read off the backbone, and what it is compared with.

- `classification` is read at the mean of the text's states, in a decoder at the last, by a trained linear head; of a
  pair, outside a decoder, that head is given how the means of the two texts differ as well;
- `label_words` at a [MASK] behind the text, in T5's decoder or behind a decoder's cue, by the model's language head;
- `generation` at every place of the target, by the model's language head.

The first two give logits of C classes and differ only in where a vector is read and which head scores it, so one batch
serves both. A pair of sentences is not a task of its own: each of them takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.errors import TuningError, UsageError, name_record
from rapt.service.adapter.task_head import TaskHead, compare_texts, pool_text
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, check_texts, lay_out
from rapt.service.backbone.placement import send
from rapt.service.backbone.steering import Steering
from rapt.wire.manifest import LabelPrivacy, Manifest
from rapt.wire.model_files import is_byte_level
from rapt.wire.privatized_file import PrivatizedRecord

# What a batch came to, whatever its task.


@dataclass(frozen=True, eq=False)
class BatchOutcome:
    """The loss of one batch and how much of it was right.

    Attributes:
        loss: L_task, a scalar in nats a row, or a token of generated text; carries a gradient.
        right: Number of right answers, a scalar.
        total: Number of answers that the batch asks for.
    """

    loss: Tensor
    right: Tensor
    total: int


# Forward correction of the task loss for labels that were privatized by a known matrix.
#
# Labels in a file may come from randomized response (`LabelPrivacy` in the manifest). Training on them as they are fits
# the noise: the head learns p(noisy label | text), which is flatter than p(label | text). The two are tied by the known
# matrix, p_noisy = Tᵀ p with T[x, y] = P(y|x), so the cross-entropy of the noisy labels is taken at Tᵀ p. Its minimum
# over p is then at the true p (Patrini et al., "Making Deep Neural Networks Robust to Label Noise", CVPR 2017, Theorem
# 2). This is post-processing: it costs no privacy, and an attacker can do the same.


def make_transition_matrix(*, classes: int, epsilon: float) -> NDArray[np.float64]:
    """T of K-ary randomized response, (K, K): T[x, y] = P(y|x), e^ε / (e^ε + K - 1) on the diagonal."""
    ratio = math.exp(-epsilon)  # e^-ε does not overflow
    matrix = np.full((classes, classes), ratio)
    np.fill_diagonal(matrix, 1.0)
    return matrix / (1 + (classes - 1) * ratio)


def task_loss(logits: Tensor, labels: Tensor, *, label_privacy: LabelPrivacy | None) -> Tensor:
    """Mean negative log-likelihood of the labels in the file: -log (Tᵀ p)[y], with p = softmax(logits).

    Args:
        logits: Logits of the true label, (B, K).
        labels: Labels as they stand in the file, (B,), int64.
        label_privacy: Mechanism that privatized the labels; None for true ones, which gives plain cross-entropy.

    Returns:
        Scalar, nats per record.
    """
    if label_privacy is None:
        return nn.functional.cross_entropy(logits, labels)
    return label_losses(logits, labels, label_privacy=label_privacy).mean()


def label_losses(logits: Tensor, labels: Tensor, *, label_privacy: LabelPrivacy | None) -> Tensor:
    """Return the loss of each record, (B,), whose mean is `task_loss`."""
    if label_privacy is None:
        return nn.functional.cross_entropy(logits, labels, reduction="none")
    matrix = make_transition_matrix(classes=logits.shape[1], epsilon=label_privacy.epsilon)
    log_matrix = torch.as_tensor(np.log(np.maximum(matrix, 1e-300)), dtype=logits.dtype, device=logits.device)
    # log (Tᵀ p)[y] = logsumexp over x of log p[x] + log T[x, y]: no probability is ever rounded to 0.
    return -torch.logsumexp(nn.functional.log_softmax(logits, dim=1) + log_matrix.T[labels], dim=1)


# Generation: the words of a target text, each predicted from those before it (teacher forcing).
#
# A T5 reads the text in its encoder and writes the target in its decoder. A decoder reads both in one run: text, a line
# end, target. The target's own tokens are privatized, or declared public, before they arrive: docs/decisions/0013.


@dataclass(frozen=True)
class Generation:
    """Text to text, by the model's own language head: nothing but the soft prompt is trained."""

    def check(self, backbone: Backbone, manifest: Manifest) -> None:
        """Refuse an encoder (`UsageError`), and a file without targets (`TuningError`)."""
        if backbone.kind == "encoder":
            raise UsageError(
                f"text can be generated by an encoder-decoder or a decoder, got model={backbone.model!r}, an encoder; "
                "choose another model"
            )
        if manifest.targets is None:
            raise TuningError("a file to tune generation on must have targets; privatize it with `target_column`")

    def make_head(
        self,
        backbone: Backbone,
        *,
        labels: tuple[str, ...],
        label_words: tuple[str, ...] | None,
        pairs: bool,
        generator: torch.Generator,
    ) -> nn.Module:
        """A module without parameters: the model's own head reads the words."""
        return nn.Identity()

    def check_record(
        self, backbone: Backbone, record: PrivatizedRecord, *, prompt_length: int, plain_tokens: int, position: int
    ) -> None:
        """Refuse a record that does not fit into the backbone, or has no text or no target (`UsageError`)."""
        target = record.target_ids or ()
        if not target:
            raise UsageError(f"{name_record(position)} must have a target of at least one token; leave it out")
        needed = len(backbone.frame.decoder_start) + len(target)
        if backbone.kind == "encoder-decoder" and needed > backbone.max_positions:
            raise UsageError(
                f"the target of {name_record(position)} must fit into {backbone.max_positions} positions, got "
                f"{needed}; privatize with a lower `truncate_to`"
            )
        check_texts(
            backbone,
            record.token_ids,
            record.second_token_ids,
            prompt_length=prompt_length,
            plain_tokens=plain_tokens,
            position=position,
            other_tokens=len(self.cue(backbone)) + len(target) if backbone.kind == "decoder" else 0,
        )

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """The public tokens between text and target: a line end in a decoder."""
        return backbone.frame.between if backbone.kind == "decoder" else ()

    def lay_out(
        self, backbone: Backbone, records: Sequence[PrivatizedRecord], *, prompt_lengths: Sequence[int], plain: bool
    ) -> Layout:
        """The layout of a batch for training; a decoder's targets are in the row, without the closing token."""
        with_targets = backbone.kind == "decoder"
        return lay_out(
            backbone,
            prompt_lengths=prompt_lengths,
            privatized_plain_tokens=[record.privatized_plain_tokens if plain else () for record in records],
            texts=[record.token_ids for record in records],
            second_texts=[record.second_token_ids for record in records],
            cues=[self.cue(backbone)] * len(records),
            continuations=[(record.target_ids or ()) if with_targets else () for record in records],
        )

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
    ) -> BatchOutcome:
        """Mean cross-entropy of the target tokens and of the token that ends each; `right` counts tokens."""
        frame = backbone.frame
        closing = () if frame.eos_id is None else (frame.eos_id,)
        targets = [(*(record.target_ids or ()), *closing) for record in records]
        width = max(len(target) for target in targets)
        place = states.device
        real = torch.arange(width, device=place) < torch.tensor([[len(target)] for target in targets], device=place)
        words = torch.tensor([[*target, *[frame.pad_id] * (width - len(target))] for target in targets], device=place)
        if backbone.kind == "encoder-decoder":
            start = torch.tensor([frame.decoder_start] * len(records), device=place)
            vectors = backbone.decode(
                torch.cat([start, words[:, :-1]], dim=1),
                encoder_states=states,
                encoder_mask=layout.attention_mask,
                steering=steering,
            )[:, len(frame.decoder_start) - 1 :]
        else:
            columns = (layout.answer_column[:, None] + torch.arange(width, device=place)).clamp(max=states.shape[1] - 1)
            vectors = states.gather(1, columns[:, :, None].expand(-1, -1, states.shape[2]))
        logits, wanted = backbone.word_logits(vectors[real]), words[real]  # (N, V) and (N,)
        return BatchOutcome(
            loss=nn.functional.cross_entropy(logits, wanted),
            right=(logits.argmax(dim=1) == wanted).sum(),
            total=len(wanted),
        )


# Public words behind a text that ask a decoder for the label. Its continuation is then a word with a space before it.
DECODER_CUE: Final = "\nLabel:"


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
            raise TuningError("a file to tune on must have labels; privatize it again with `label_column`")
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
            backbone: Frozen backbone.
            labels: Names of the classes.
            label_words: A word for each class; None takes the names. Only read by words.
            pairs: Whether every record is of two texts.
            generator: Generator of the initial weights of a trained head.

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
        """Return a mask of the states that are used, (B, T); None where more than the answer depends on them."""
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
            backbone: Backbone that made the states.
            states: Last-layer states, (B, T, h).
            layout: Layout of the batch.
            steering: Steering of the batch, where a decoder reads the states of an encoder.
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
    ) -> BatchOutcome:
        """Cross-entropy of the C classes, corrected for randomized labels; `right` counts rows."""
        compared = isinstance(head, TaskHead) and head.compares
        logits: Tensor = head(self.vectors(backbone, states, layout, steering=steering, compared=compared))
        (labels,) = send([torch.tensor([record.label for record in records])], states.device)
        return BatchOutcome(
            loss=task_loss(logits, labels, label_privacy=label_privacy),
            right=(logits.argmax(dim=1) == labels).sum(),
            total=len(records),
        )


TASKS: Final[Mapping[str, Classes | Generation]] = {
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
    # Where tokens are bytes, a word inside a text begins with its space; other tokenizers drop or add one themselves.
    spaced = backbone.kind == "decoder" or is_byte_level(backbone.vocabulary.tokenizer_json)
    pieces = [backbone.tokenize(" " + word if spaced else word) for word in words]
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

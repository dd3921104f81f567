"""What a loader takes out of a checkpoint, whatever its architecture: the parts that a backbone is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from rapt.service.backbone.language_head import LanguageHead

if TYPE_CHECKING:  # a server that has its own forward pass need not load the library
    from transformers import PreTrainedModel

# encoder: every position sees every other. encoder-decoder: text goes into the first half, words come out of the
# second. decoder: a position sees those before it.
Kind = Literal["encoder", "encoder-decoder", "decoder"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """The parts of a loaded checkpoint.

    Attributes:
        whole: The model as loaded, of which the two below are parts or which is itself the first.
        encoder: What turns input vectors into last-layer states; of a decoder-only model, all of its layers.
        decoder: The second half of an encoder-decoder; None for the others.
        language_head: Scores of words from states; None where the checkpoint has none.
        segment_shift: What a position of the second text has more in its input vector than one of the first, (h,);
            None where an architecture tells them apart by tokens alone.
        takes_positions: Whether `encoder` is told the position of each vector; T5 knows distances only.
        own_forward: Gives the states of `encoder`, faster; its weights take no gradient. None where there is none.
    """

    whole: PreTrainedModel
    encoder: nn.Module
    decoder: nn.Module | None = None
    language_head: LanguageHead | None = None
    segment_shift: Tensor | None = None
    takes_positions: bool = True
    own_forward: nn.Module | None = None

"""The frozen language model: token ids or vectors in, last-layer states out.

Nothing here is ever trained. Gradients flow through it to the vectors that are put in, never into its weights.
Whatever the architecture, the rest of the room sees three calls: `embed`, `encode` and `word_logits`, and for
encoder-decoders a fourth, `decode`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.errors import UsageError
from rapt.service.backbone.architectures import Kind, LanguageHead
from rapt.service.backbone.codewords import Reader, find_rows
from rapt.service.backbone.frame import ChatFrame, Frame
from rapt.service.backbone.injection import Sites
from rapt.service.backbone.noise_expected import NoiseExpected
from rapt.service.backbone.steering import Steering, apply_steering
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.model_files import make_tokenizer
from rapt.wire.vocabulary_bundle import VocabularyBundle

Weights = Literal["whole", "8bit", "4bit"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen language model with its vocabulary.

    Attributes:
        model: Name of the model, as manifests have it; never a path.
        bundle: The vocabulary that users privatize with; its hash is what both sides compare.
        architecture: `model_type`, a key of `ARCHITECTURES` or one that `general` admits; `codes` for a codebook.
        kind: Kind of attention, see `Kind`.
        encoder: Module that `encode` calls, in evaluation mode, no parameter of which takes a gradient.
        decoder: The second half of an encoder-decoder, or None.
        language_head: Scores of words from states; None where the checkpoint has none.
        sites: Layers where it can be steered: its attention layers and its linear layers.
        word_embeddings: The table E, (V, e), in float32; of a backbone that expects noise it may be E[E(x)|y].
        hidden_size: h, of a state. What is put in has e = `embedding_size` numbers, fewer in ALBERT and small ELECTRA.
        dtype: Type of the frozen weights; what is trained is float32 whatever this is.
        max_positions: Longest sequence, everything counted.
        frame: The public ids that stand around texts.
        segment_shift: Vector that a position of a second text has on top in its input, (e,), or None.
        takes_positions: Whether `encoder` is told the position of each vector.
        own_forward: Function that `encode` calls in place of `encoder`, or None: the same numbers, faster.
        expects: The noise that it was distilled for; None for a model that has only seen clear text.
        chat: Tokens that its chat template puts around a message, of a decoder that has one.
        weights: Form in which the weights of linear layers are kept: `whole`, `8bit` or `4bit`.
        fetches_layers: Whether weights of layers are fetched for each pass: then a run computes its layers again, so as
            not to keep them all.
        position_offset: Number that is added to positions before the encoder sees them.
        code: The codebook of the whole texts that it takes; None where it takes tokens.
        reader: Network that puts input vectors in the place of codewords; None where no language model follows a
            codebook, or where tokens are taken.
        words: Vocabulary of the language model itself, where users privatize with another; None where it is `bundle`.
        public_states: States of public texts in the encoder of a codebook, (n, h), which heads for answers at home are
            taught on; None where there are none.
    """

    model: str
    bundle: VocabularyBundle
    architecture: str
    kind: Kind
    encoder: nn.Module
    decoder: nn.Module | None
    language_head: LanguageHead | None
    sites: Sites
    word_embeddings: Tensor
    hidden_size: int
    dtype: torch.dtype
    max_positions: int
    frame: Frame
    segment_shift: Tensor | None
    takes_positions: bool
    own_forward: nn.Module | None = None
    expects: NoiseExpected | None = None
    chat: ChatFrame | None = None
    weights: Weights = "whole"
    fetches_layers: bool = False
    position_offset: int = 0
    code: CodeBundle | None = None
    reader: Reader | None = None
    words: VocabularyBundle | None = None
    public_states: NDArray[np.float32] | None = None

    @property
    def vocabulary(self) -> VocabularyBundle:
        """The vocabulary of the language model itself: of prompts, label words and answers."""
        return self.words or self.bundle

    @property
    def is_codebook(self) -> bool:
        """Whether there is no language model, and a text's codeword is its state."""
        return self.code is not None and self.reader is None

    @property
    def vectors_per_id(self) -> int:
        """Positions that each id of a text takes: 1, but for the codewords that a reader makes vectors of."""
        return 1 if self.reader is None else self.reader.network.vectors

    @property
    def plain_texts(self) -> int:
        """Number of public texts whose codes a run may reconstruct: those that a reader brings along."""
        return 0 if self.reader is None else len(self.reader.plain)

    @property
    def device(self) -> torch.device:
        """The device on which the backbone computes."""
        return self.word_embeddings.device

    @property
    def embedding_size(self) -> int:
        """e, of a vector at the place of a word embedding; the same as h but where a model projects them."""
        return self.word_embeddings.shape[1]

    @property
    def pad_id(self) -> int:
        """Id of the filler, masked from attention."""
        return self.frame.pad_id

    def embed(self, token_ids: Tensor) -> Tensor:
        """Rows of the table, (B, T) -> (B, T, e), float32, before positions and layer norm.

        Ids that a reader spelled have the vectors that it makes.
        """
        if self.is_codebook and self.code is not None:
            token_ids = find_rows(self.code, token_ids)
        if self.reader is None or not (spelled := token_ids >= self.reader.first_id).any():
            return nn.functional.embedding(token_ids, self.word_embeddings)
        vectors = nn.functional.embedding(token_ids.masked_fill(spelled, self.pad_id), self.word_embeddings)
        return vectors.index_put((spelled,), self.reader.embed(token_ids[spelled]))

    def encode(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor,
        position_ids: Tensor,
        steering: Steering | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Last-layer states, (B, T, h), float32; of a decoder, after its final norm.

        Args:
            inputs_embeds: Vectors at the place of word embeddings, (B, T, e); may require a gradient.
            attention_mask: 1 at real positions, (B, T).
            position_ids: Explicit positions, (B, T): a model must not guess them from padded vectors. An architecture
                that knows distances only is not told them.
            steering: Prefixes and low-rank changes of the rows; None leaves the model as it is.
            wanted: Not 0 where a state is asked for, (B, T), at one real position a row at least; elsewhere it may be
                left out and 0. None asks for all.
        """
        if self.own_forward is not None:
            found: Tensor = self.own_forward(
                inputs_embeds.to(self.dtype),
                attention_mask=attention_mask,
                position_ids=position_ids,
                steering=steering,
                wanted=wanted,
            )
            return found.float()
        positions = {"position_ids": position_ids + self.position_offset} if self.takes_positions else {}
        with apply_steering(steering):
            states: Tensor = self.encoder(
                inputs_embeds=inputs_embeds.to(self.dtype), attention_mask=attention_mask, **positions
            ).last_hidden_state
        return states.float()

    def decode(
        self, token_ids: Tensor, *, encoder_states: Tensor, encoder_mask: Tensor, steering: Steering | None = None
    ) -> Tensor:
        """Last-layer states of an encoder-decoder's second half, (B, U, h), float32: row u sees words 0 to u.

        Args:
            token_ids: Words so far, the start token first, (B, U).
            encoder_states: States that `encode` gave, (B, T, h).
            encoder_mask: 1 at its real positions, (B, T).
            steering: Prefixes and low-rank changes of the rows; None leaves the model as it is.
        """
        assert self.decoder is not None, "only an encoder-decoder decodes"
        with apply_steering(steering):
            states: Tensor = self.decoder(
                inputs_embeds=self.embed(token_ids).to(self.dtype),
                encoder_hidden_states=encoder_states.to(self.dtype),
                encoder_attention_mask=encoder_mask,
                use_cache=False,
            ).last_hidden_state
        return states.float()

    def word_logits(self, states: Tensor, *, word_ids: Tensor | None = None) -> Tensor:
        """Scores of all words, (..., h) -> (..., V), or of `word_ids` alone, (..., C); float32.

        Raises:
            UsageError: The checkpoint has no language head.
        """
        logits: Tensor = self.require_language_head()(states, word_ids=word_ids)
        return logits

    def require_language_head(self) -> LanguageHead:
        """Return the language head.

        Raises:
            UsageError: The checkpoint has none.
        """
        if self.language_head is None:
            raise UsageError(
                f"words can be predicted only by a model with a language head, got model={self.model!r} without one; "
                "train a head on the text (task classification), or choose another model"
            )
        return self.language_head

    def tokenize(self, public_text: str) -> tuple[int, ...]:
        """Content tokens of a string that is public, such as a label word: never of a user's text."""
        return _tokenize_public(self.vocabulary.tokenizer_json, public_text)


# The cue of a decoder is asked for with every row, and a tokenizer takes long to read.
@functools.lru_cache(maxsize=256)
def _tokenize_public(tokenizer_json: bytes, text: str) -> tuple[int, ...]:
    return tuple(make_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids)

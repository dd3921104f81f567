"""The frozen language model: token ids or vectors in, last-layer states out.

Nothing here is ever trained. Gradients flow through it to the vectors that are put in, never into its weights.
Whatever the architecture, the rest of the room sees three calls: `embed`, `encode` and `word_logits`, and for
encoder-decoders a fourth, `decode`.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rapt.errors import UsageError, VocabularyError
from rapt.public_models import find_model_folder, name_model
from rapt.service.backbone.architectures import ALIASES, ARCHITECTURES, Kind, LanguageHead, load_parts
from rapt.service.backbone.code_table import ARCHITECTURE as CODES
from rapt.service.backbone.code_table import FRAME, CodeStates, find_rows, view_as_vocabulary
from rapt.service.backbone.frame import ChatFrame, Frame, frame_of, read_chat_frame
from rapt.service.backbone.general import find_table, find_window, load_general
from rapt.service.backbone.injection import Sites, install, install_where_it_can
from rapt.service.backbone.laws import admit, check_weights
from rapt.service.backbone.library import make_loading_arguments
from rapt.service.backbone.placement import choose_device, move_to
from rapt.service.backbone.reader import Reader, load_reader
from rapt.service.backbone.steering import Steering, steered
from rapt.wire.code_bundle import CodeBundle, holds_code_bundle, read_code_bundle
from rapt.wire.manifest import MechanismSetting, Parameter
from rapt.wire.model_files import hash_model, make_tokenizer
from rapt.wire.reader_bundle import ReaderBundle, holds_reader_bundle, read_reader_bundle
from rapt.wire.vocabulary_bundle import VocabularyBundle, read_model_bundle

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Weights = Literal["whole", "8bit", "4bit"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen language model with its vocabulary.

    Attributes:
        model: Name of the model, as manifests have it; never a path.
        bundle: The vocabulary that users privatize with; its hash is what both sides compare.
        architecture: `model_type`, a key of `ARCHITECTURES` or one that `laws` admits; `codes` for a codebook.
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
        weights: How the weights of linear layers are kept: `whole`, `8bit` or `4bit`.
        position_offset: Number that is added to positions before the encoder sees them.
        code: The codebook of the whole texts that it takes; None where it takes tokens.
        reader: Network that puts input vectors in the place of codewords; None where no language model follows a
            codebook, or where tokens are taken.
        words: Vocabulary of the language model itself, where users privatize with another; None where it is `bundle`.
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
    position_offset: int = 0
    code: CodeBundle | None = None
    reader: Reader | None = None
    words: VocabularyBundle | None = None

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
        spelled = None if self.reader is None else token_ids >= self.reader.first_id
        if self.reader is None or spelled is None or not spelled.any():
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
        with steered(steering):
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
        with steered(steering):
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
        """The language head.

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
        return _public_ids(self.vocabulary.tokenizer_json, public_text)


@functools.lru_cache(maxsize=4)
def load_backbone(
    model: str,
    *,
    precision: Precision = "auto",
    device: str = "auto",
    behind: str | None = None,
    weights: Weights = "whole",
) -> Backbone:
    """The named model, frozen; loading it twice gives the same object.

    Args:
        model: A name in `PUBLIC_MODELS`, a folder in Hugging Face's layout, of a code bundle or of a reader, or a name
            of the hub that is in its local cache.
        precision: `auto` takes bfloat16 where it is measured to be faster on this processor, else float32.
        device: As `choose_device` takes it.
        behind: Name or folder of the backbone that a reader was trained for; None goes by the name in the reader.
        weights: `8bit` and `4bit` keep the linear layers in as many bits, by a package of the extra `[quantized]`.

    Raises:
        VocabularyError: The model's files are missing or damaged, or a reader was trained for another backbone.
        UsageError: The model's architecture is not one of `ARCHITECTURES`, and breaks one of `laws`; or the device is
            not there, or too small for the model.
    """
    folder, model = find_model_folder(model), name_model(model)
    place = choose_device(device)
    if holds_reader_bundle(folder):
        bundle_read = read_reader_bundle(folder)
        base = behind or bundle_read.model
        return _read_through(bundle_read, base, model=model, precision=precision, device=device, weights=weights)
    if holds_code_bundle(folder):
        return _load_codes(folder, model=model, place=place)
    bundle = read_model_bundle(folder, model=model)
    config = json.loads((folder / "config.json").read_bytes())
    architecture = str(config.get("model_type"))
    architecture = ALIASES.get(architecture, architecture)
    dtype = chosen_dtype(precision, place)
    loaded, more = None, make_loading_arguments(weights, dtype=dtype, device=place)
    if architecture in ARCHITECTURES:
        kind = ARCHITECTURES[architecture].kind
        parts = load_parts(architecture, folder, dtype=dtype, model=model, more=more)
    else:
        eligible = torch.from_numpy(bundle.eligible.copy())
        loaded = load_general(folder, config=config, dtype=dtype, eligible=eligible, model=model, more=more)
        kind, parts = loaded.kind, loaded.parts
    whole: nn.Module = parts.whole
    check_weights(whole, model=model)
    move_to(place, whole.requires_grad_(False).eval(), model=model)
    head = parts.language_head
    if head is not None:
        move_to(place, head.requires_grad_(False).eval(), model=model)
    table = torch.from_numpy(bundle.embeddings.copy()).to(place)
    if loaded is not None:
        loaded = loaded.to(place)
        table = find_table(loaded, len(table))
    soft = read_soft_embeddings(folder, like=table)
    frame = frame_of(bundle.tokenizer_json, config=config, causal=kind == "decoder")
    chat = None
    if kind == "decoder":
        chat = read_chat_frame(folder, tokenizer_json=bundle.tokenizer_json, start=frame.start)
    backbone = Backbone(
        model=model,
        bundle=bundle,
        architecture=architecture,
        kind=kind,
        encoder=parts.encoder,
        decoder=parts.decoder,
        language_head=head,
        sites=install(parts.whole) if loaded is None else install_where_it_can(parts.whole),
        word_embeddings=table if soft is None else soft,
        hidden_size=table.shape[1] if loaded is None else loaded.states.shape[1],
        dtype=dtype,
        max_positions=min(bundle.max_tokens, find_window(config) or bundle.max_tokens),
        frame=frame,
        segment_shift=None if parts.segment_shift is None else parts.segment_shift.to(place),
        takes_positions=parts.takes_positions,
        own_forward=None if parts.own_forward is None else parts.own_forward.to(place),
        expects=read_noise_expected(folder),
        chat=chat,
        weights=weights,
    )
    return backbone if loaded is None else admit(backbone, loaded)


def _load_codes(folder: Path, *, model: str, place: torch.device) -> Backbone:
    """The codebook in a folder, as a backbone without layers."""
    code = read_code_bundle(folder)
    view = replace(view_as_vocabulary(code), model=model)
    table = torch.from_numpy(view.embeddings).to(place)
    states = CodeStates().eval()
    return Backbone(
        model=model,
        bundle=view,
        architecture=CODES,
        kind="encoder",
        encoder=states,
        decoder=None,
        language_head=None,
        sites=Sites(attention=(), linear={}, model=cast("PreTrainedModel", states)),  # asked for its counts alone
        word_embeddings=table,
        hidden_size=table.shape[1],
        dtype=torch.float32,
        max_positions=view.max_tokens,
        frame=FRAME,
        segment_shift=None,
        takes_positions=False,
        code=code,
    )


def _read_through(
    reader: ReaderBundle, base: str, *, model: str, precision: Precision, device: str, weights: Weights
) -> Backbone:
    """The backbone of a reader, which takes codes, and rows of tokens beside them."""
    try:
        folder = find_model_folder(base)
    except VocabularyError:
        raise VocabularyError(
            f"a reader must have its backbone on this machine, got none for {reader.model[:100]!r}; name its "
            "folder, or serve it under that name as well"
        ) from None
    if hash_model(folder) != reader.backbone_hash:
        raise VocabularyError(
            f"a reader must meet the backbone that it was trained for, got another for {reader.model[:100]!r}; take "
            "that backbone, or make the reader again with `rapt reader`"
        )
    # Asked for as `load_served` does, in the same order: so one that is served as well is loaded once.
    backbone = load_backbone(base, precision=precision, device=device, behind=None, weights=weights)
    if len(reader.tensors["output.bias"]) != reader.vectors * backbone.embedding_size:
        raise VocabularyError(
            f"a reader must make vectors of {backbone.embedding_size} numbers for this backbone, got another width; "
            "make it again with `rapt reader`"
        )
    view = replace(view_as_vocabulary(reader.code), model=model)
    points = torch.from_numpy(view.embeddings).to(backbone.device)
    return replace(
        backbone,
        model=model,
        bundle=view,
        words=backbone.bundle,
        code=reader.code,
        reader=load_reader(reader, points=points, first_id=len(backbone.word_embeddings)),
        expects=None,
        chat=None,
    )


def load_served(
    model: str,
    *,
    name: str,
    precision: Precision,
    device: str = "auto",
    served: Mapping[str, str] | None = None,
    weights: Weights = "whole",
) -> Backbone:
    """A model under the name that it is served by, which is the last part of a folder's. Raises as `load_backbone`.

    Args:
        model: Known name or folder.
        name: Name that it is served under.
        precision: Number format of the frozen weights.
        device: As `choose_device` takes it.
        weights: How those of linear layers are kept, as in `load_backbone`.
        served: All served models by name, among which a reader finds its backbone first.
    """
    folder = find_model_folder(model)
    behind = (served or {}).get(read_reader_bundle(folder).model) if holds_reader_bundle(folder) else None
    backbone = load_backbone(model, precision=precision, device=device, behind=behind, weights=weights)
    return replace(backbone, model=name, bundle=replace(backbone.bundle, model=name))


def check_model_files(model: str) -> None:
    """Refuse files of a model that somebody else will load (`VocabularyError`, `WireError`)."""
    folder = find_model_folder(model)
    if holds_reader_bundle(folder):
        read_reader_bundle(folder)
    elif holds_code_bundle(folder):
        read_code_bundle(folder)
    else:
        read_model_bundle(folder, model=name_model(model))


# The cue of a decoder is asked for with every row, and a tokenizer takes long to read.
@functools.lru_cache(maxsize=256)
def _public_ids(tokenizer_json: bytes, text: str) -> tuple[int, ...]:
    return tuple(make_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids)


Precision = Literal["auto", "float32", "bfloat16"]


def chosen_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Choose the number format that a backbone computes in on a device."""
    if precision == "auto":
        faster = device.type == "cuda" or _bfloat16_speedup() > 1.2
        return torch.bfloat16 if faster else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@functools.cache
def _bfloat16_speedup() -> float:
    """How much faster this processor multiplies in bfloat16, measured in a few milliseconds.

    What the processor claims is no guide: the same instructions run at three times the speed of float32 on one machine
    and at half of it on another.
    """
    factors = {
        dtype: (torch.ones(512, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(factors, math.inf)
    # By turns and the best of many: whoever else uses the machine in these milliseconds must not choose the precision.
    for _ in range(20):
        for dtype, (left, right) in factors.items():
            start = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


# What noise a backbone expects: the files beside its weights that `rapt denoise` writes and `rapt serve` reads.


SCHEMA: Final = "rapt.denoised-backbone/1"
CARD: Final = "denoising.json"
SOFT_EMBEDDINGS: Final = "soft_embeddings.safetensors"
_TABLE: Final = "word_embeddings"
# A backbone for several η serves those between them, and a little beyond. How far is right was not measured: on SST-2
# with MiniLM 52 % of the tokens are unchanged at η = 75, and 61 % at 80.
_SLACK: Final = 1.1


@dataclass(frozen=True, kw_only=True)
class NoiseExpected:
    """The settings that a backbone was distilled for.

    Attributes:
        mechanism: Name of the mechanism.
        options: Parameters of the mechanism but η.
        etas: Every η, 1/distance.
    """

    mechanism: str
    options: Mapping[str, Parameter]
    etas: tuple[float, ...]

    def covers(self, setting: MechanismSetting) -> bool:
        """Whether text that was privatized so is what the backbone expects."""
        options = {name: value for name, value in setting.parameters.items() if name != "eta"}
        same = setting.name == self.mechanism and options == dict(self.options)
        return same and min(self.etas) / _SLACK <= setting.eta <= max(self.etas) * _SLACK


def read_noise_expected(folder: Path) -> NoiseExpected | None:
    """Read the noise that the card in a model folder names; None where there is no card.

    Raises:
        VocabularyError: The card is damaged or of another version.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        card: dict[str, Any] = json.loads(path.read_bytes())
        plan = card["plan"]
        etas = tuple(float(eta) for eta in plan["etas"])
        if card["schema"] != SCHEMA or not etas:
            raise ValueError
        return NoiseExpected(mechanism=str(plan["mechanism"]), options=dict(plan["options"]), etas=etas)
    except (OSError, ValueError, KeyError, TypeError):
        raise VocabularyError(
            f"{CARD} must be a card of schema {SCHEMA!r}; make the backbone again with rapt denoise, or remove the card"
        ) from None


def soft_embeddings_file(table: Tensor) -> bytes:
    """Return the file of a backbone that looks words up in a table of its own, (V, h)."""
    return save_tensors({_TABLE: table.contiguous()})


def read_soft_embeddings(folder: Path, *, like: Tensor) -> Tensor | None:
    """The table in a model folder, of the shape of `like`; None where there is none.

    Raises:
        VocabularyError: The file is damaged or of another vocabulary.
    """
    try:
        table = load_tensors((folder / SOFT_EMBEDDINGS).read_bytes())[_TABLE]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError):
        table = None
    if table is None or table.shape != like.shape or not table.isfinite().all():
        raise VocabularyError(
            f"{SOFT_EMBEDDINGS} must have a finite vector for each word; make the backbone again with rapt denoise"
        )
    return table.to(like)

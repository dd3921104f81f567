"""Any common architecture: loaded by the library's own choice of classes, and admitted by laws.

What `ARCHITECTURES` does not name is loaded here, whatever its name, and asked for its own numbers on a few public
tokens before anything in it is changed. Each law is computed at start against them: what the rest of the room does with
the model must give what the model gives by itself. A model that breaks one is refused, with the law.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from rapt.errors import UsageError, VocabularyError
from rapt.service.backbone.architectures import Kind, LanguageHead, Parts, check_complete
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.library import StatesGiven, find_kinds, keep_layout, place_rows, quiet
from rapt.service.backbone.steering import Tuned, steer

_TOKENS: Final = 7
# How many of them are a second text, where a model tells two texts apart.
SECOND: Final = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """A model that is to be admitted.

    Attributes:
        kind: Kind of attention.
        parts: Parts of the model.
        token_ids: Public tokens that the laws are computed on, (T,).
        states: Last-layer states of the model itself for them, (T, h), float32.
        states_of_two: The same when the last `SECOND` tokens are a second text; None where it knows no second text.
        logits: Scores of words that the model itself gives for the tokens, (T, V), float32; None where it has no
            language head. An encoder-decoder reads the tokens in both halves.
    """

    kind: Kind
    parts: Parts
    token_ids: Tensor
    states: Tensor
    states_of_two: Tensor | None
    logits: Tensor | None

    def to(self, device: torch.device) -> Loaded:
        """The same with its tensors on a device, where the parts are already."""
        two = None if self.states_of_two is None else self.states_of_two.to(device)
        logits = None if self.logits is None else self.logits.to(device)
        token_ids, states = self.token_ids.to(device), self.states.to(device)
        return replace(self, token_ids=token_ids, states=states, states_of_two=two, logits=logits)


def find_window(config: Mapping[str, Any]) -> int | None:
    """Return how far a model sees whose layers see a window only: longer texts would need masks of two kinds."""
    config = config.get("text_config") or config
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", True)
    return window if slides and type(window) is int and window > 0 else None


def load_general(
    folder: Path,
    *,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    eligible: Tensor,
    model: str,
    more: Mapping[str, Any],
) -> Loaded:
    """Load a model whose `model_type` no entry names, and ask it for its own states before anything is changed in it.

    Args:
        folder: Folder in Hugging Face's layout.
        config: Content of its `config.json`.
        dtype: Type of the weights.
        eligible: Ids that may be an output, of which a few are read.
        model: Name of the model, for messages.
        more: Arguments of `library.make_loading_arguments`.

    Raises:
        UsageError: It is of a kind that is not served, or the library does not know it.
        VocabularyError: Files of the model are missing or damaged.
    """
    kind = _find_kind(config)
    whole, has_head = _load_whole(folder, kind=kind, dtype=dtype, config=config, model=model, more=more)
    base: nn.Module = whole.get_encoder() if kind == "encoder-decoder" else whole.base_model
    ids = eligible[torch.linspace(0, len(eligible) - 1, _TOKENS).long()].to(whole.device)
    types = _find_types(base) if kind == "encoder" else None
    seen = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    with torch.no_grad():
        states = base(**seen).last_hidden_state[0].float()
        two = None
        if types is not None:
            second = (torch.arange(_TOKENS, device=ids.device) >= _TOKENS - SECOND).long()[None]
            two = base(**seen, token_type_ids=second).last_hidden_state[0].float()
        words = {"decoder_input_ids": ids[None]} if kind == "encoder-decoder" else {}
        logits = whole(**seen, **words).logits[0].float() if has_head else None
    decoder = whole.get_decoder() if kind == "encoder-decoder" else None
    if decoder is not None:
        place_rows(decoder)
    parts = Parts(
        whole=whole.base_model if kind == "encoder" else whole,
        encoder=base,
        decoder=decoder,
        language_head=_find_head(whole, kind=kind) if has_head else None,
        segment_shift=types,
        takes_positions="position_ids" in inspect.signature(type(base).forward).parameters,
    )
    return Loaded(kind=kind, parts=parts, token_ids=ids, states=states, states_of_two=two, logits=logits)


def _load_whole(
    folder: Path, *, kind: Kind, dtype: torch.dtype, config: Mapping[str, Any], model: str, more: Mapping[str, Any]
) -> tuple[Any, bool]:
    """The model with its language head, and whether the checkpoint has the weights of that head."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    auto: Any = {
        "encoder": AutoModelForMaskedLM,
        "decoder": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }[kind]
    settings: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        **more,
    }
    if config.get("attn_logit_softcapping"):
        settings["attn_implementation"] = "eager"  # older versions take torch's kernel, which leaves the cap out
    try:
        with quiet():
            whole: Any
            whole, notes = auto.from_pretrained(str(folder), dtype=dtype, **settings)
    except torch.OutOfMemoryError:  # a RuntimeError as well, and `room_for` has the words for it
        raise
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, AttributeError):
        raise VocabularyError(
            f"model={model!r} must have config.json and model.safetensors that fit each other, of an architecture that "
            "the installed transformers knows; install it again, or upgrade transformers"
        ) from None
    # A weight that is not there is made up by the library. A pooler is not used here; an encoder goes without words.
    base = whole.base_model_prefix + "."
    of_head = [name for name in notes["missing_keys"] if kind == "encoder" and not name.startswith(base)]
    missing = [name for name in notes["missing_keys"] if name not in of_head and "pooler" not in name]
    check_complete(missing, architecture=str(config.get("model_type")))
    keep_layout(whole)
    whole.config.use_cache = False  # a cache is asked for where it is used
    return whole.eval(), not of_head


def _find_kind(config: Mapping[str, Any]) -> Kind:
    name = str(config.get("model_type"))
    asked = str((config.get("architectures") or [""])[0])
    kinds = find_kinds(name)
    if "encoder-decoder" in kinds and config.get("is_encoder_decoder") is not False:
        if type(config.get("decoder_start_token_id")) is not int:
            raise UsageError(
                f"a model of architecture {name!r} must state decoder_start_token_id in config.json, the token that "
                "its second half begins with; add it"
            )
        return "encoder-decoder"
    if "encoder" in kinds and not asked.endswith(("ForCausalLM", "LMHeadModel")):
        return "encoder"
    if "decoder" in kinds:
        return "decoder"
    raise UsageError(
        f"a model of architecture {name!r} cannot be served: the installed transformers has no encoder or decoder of it"
    )


def _find_types(encoder: nn.Module) -> Tensor | None:
    """The vector that marks a second text, (e,): the model adds the first row itself, so the difference is on top."""
    for name, module in encoder.named_modules():
        if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding) and len(module.weight) > 1:
            rows = module.weight.detach().float()
            return rows[1] - rows[0]
    return None


def _find_head(whole: Any, *, kind: Kind) -> LanguageHead | None:
    """The scores of words, as far as they are a table behind something; a law compares it with the model's own."""
    output = whole.get_output_embeddings()
    if output is None:
        return None
    bias = getattr(output, "bias", None)
    if kind == "encoder":
        transform = _BeforeTheTable(whole, output)
        return LanguageHead(output.weight, bias=bias, transform=transform)
    if bias is None and isinstance(more := getattr(whole, "final_logits_bias", None), Tensor):
        bias = more[0].to(output.weight.dtype)  # BART's
    scale = 1.0 / float(getattr(whole.config, "logits_scaling", 1.0) or 1.0)
    cap = getattr(whole.config, "final_logit_softcapping", None)
    return LanguageHead(output.weight, bias=bias, scale=scale, cap=None if cap is None else float(cap))


class _BeforeTheTable(nn.Module):
    """What a model makes of its last states before the table of words: its own code, without layers and table."""

    def __init__(self, whole: Any, table: nn.Module) -> None:
        """Copy the outer modules, not their weights; the model itself stays as it is."""
        super().__init__()
        names = {module: name for name, module in whole.named_modules()}
        outer = _replace_part(whole, names[whole.base_model].split("."), StatesGiven())
        self.outer = _replace_part(outer, names[table].split("."), nn.Identity())

    def forward(self, states: Tensor) -> Tensor:
        """The vectors that are multiplied with the table, (..., h) -> (..., e)."""
        found: Tensor = self.outer(inputs_embeds=states.reshape(1, -1, states.shape[-1])).logits
        return found.reshape(*states.shape[:-1], -1)


def _replace_part(module: nn.Module, path: list[str], part: nn.Module) -> nn.Module:
    """A copy of a module that shares all of its parts but the one at a path."""
    twin, (name, *rest) = copy.copy(module), path
    twin._modules = dict(module._modules)
    twin._modules[name] = _replace_part(module.get_submodule(name), rest, part) if rest else part
    return twin


def find_table(loaded: Loaded, rows: int) -> Tensor:
    """Return the vectors that the model itself puts in for each token, (V, e): scaled, where the model scales them."""
    own: Any = loaded.parts.whole.get_input_embeddings()
    with torch.no_grad():
        found: Tensor = own(torch.arange(rows, device=loaded.token_ids.device)).float()
    return found


_PREFIX: Final = 2
# Largest difference from the model's own states, as a share of their size, in float32 and in a shorter type.
_TOLERANCE: Final = {torch.float32: 1e-3}
_SHORT_TOLERANCE: Final = 0.05


def check_weights(whole: nn.Module, head: nn.Module | None, *, model: str) -> None:
    """Refuse a model of which a weight is not a number, or infinite (`VocabularyError`): every answer would be."""
    weights = [*whole.parameters(), *(() if head is None else (*head.parameters(), *head.buffers()))]
    with torch.no_grad():
        broken = sum(
            not torch.stack(weight.aminmax()).isfinite().all()
            for weight in {weight.data_ptr(): weight for weight in weights}.values()  # tables are shared
            if weight.is_floating_point() and weight.numel()
        )
    if broken:
        raise VocabularyError(
            f"model={model!r} must have finite weights, got {broken} tensors with others; fetch the model again"
        )


def admit(backbone: Backbone, loaded: Loaded) -> Backbone:
    """Return the backbone as it may be used, once every law holds.

    Raises:
        UsageError: A law is broken, and which.
    """
    if not _is_one_table(backbone):
        law = "the table that texts are privatized with must be the one that it reads, but for a factor"
        raise _make_refused_error(backbone, law)
    found = None
    # Some count positions from behind the id of the filler (RoBERTa and its like), MPNet from 2 whatever that is.
    for offset in dict.fromkeys((0, backbone.frame.pad_id + 1, 2)):
        tried = replace(backbone, position_offset=offset)
        if _is_close(_encode(tried, loaded), loaded.states, backbone.dtype):
            found = tried
            break
    if found is None:
        raise _make_refused_error(
            backbone, "vectors that are put in must give the states that the model gives for their tokens"
        )
    laws: dict[str, Callable[[Backbone, Loaded], bool]] = {
        "padding must change no state": _is_blind_to_padding,
        "a gradient must reach what is put in": _passes_gradients,
        "attention layers, where any are found, must take a prefix": _takes_a_prefix,
    }
    for law, holds in laws.items():
        if not holds(found, loaded):
            raise _make_refused_error(backbone, law)
    if found.segment_shift is not None and not _knows_second_texts(found, loaded):
        found = replace(found, segment_shift=None)
    if found.language_head is None or _scores_words(found, loaded):
        return found
    if found.kind == "encoder":
        return replace(found, language_head=None)  # it classifies by a head of its own, and reads no words
    raise _make_refused_error(
        backbone, "its language head must be a table of words, with a bias, a scale or a cap at most"
    )


def _is_one_table(backbone: Backbone) -> bool:
    own = backbone.word_embeddings
    read = torch.from_numpy(backbone.bundle.embeddings.copy()).to(own)
    if own.shape != read.shape:
        return False
    return _is_close(own, read * ((own * read).sum() / read.square().sum().clamp(min=1e-12)), backbone.dtype)


def _encode(
    backbone: Backbone, loaded: Loaded, *, before: int = 0, after: int = 0, shift: Tensor | None = None
) -> Tensor:
    """States of the tokens, (T, h), with so much padding on either side."""
    pad = loaded.token_ids.new_full((1,), backbone.pad_id)
    ids = torch.cat([pad.expand(before), loaded.token_ids, pad.expand(after)])[None]
    place = torch.arange(ids.shape[1], device=ids.device)[None] - before
    real = (place >= 0) & (place < len(loaded.token_ids))
    vectors = backbone.embed(ids)
    with torch.no_grad():
        states = backbone.encode(
            vectors if shift is None else vectors + shift,
            attention_mask=real.long(),
            position_ids=place.clamp(min=0),
        )
    return states[0, before : before + len(loaded.token_ids)]


def _is_blind_to_padding(backbone: Backbone, loaded: Loaded) -> bool:
    alone = _encode(backbone, loaded)
    sides = [(0, 3), (3, 0)] if backbone.takes_positions else [(0, 3)]
    return all(
        _is_close(_encode(backbone, loaded, before=before, after=after), alone, backbone.dtype)
        for before, after in sides
    )


def _passes_gradients(backbone: Backbone, loaded: Loaded) -> bool:
    vectors = backbone.embed(loaded.token_ids[None]).clone().requires_grad_()
    mask = torch.ones_like(loaded.token_ids)[None]
    places = torch.arange(len(loaded.token_ids), device=mask.device)[None]
    states = backbone.encode(vectors, attention_mask=mask, position_ids=places)
    # Not their sum, which a last norm may keep constant.
    weights = torch.linspace(-1, 1, states.shape[2], device=mask.device) ** 2
    (gradient,) = torch.autograd.grad((states[:, -1] * weights).sum(), vectors)
    return bool(gradient.isfinite().all()) and bool(gradient.abs().sum(dim=(0, 2)).gt(0).all())


def _takes_a_prefix(backbone: Backbone, loaded: Loaded) -> bool:
    sites = backbone.sites.attention
    if not sites or len({(site.key_heads, site.head_size) for site in sites}) != 1:
        return True  # there is none to take one; `list_methods` leaves prefixes out
    shape = (len(sites), 2, sites[0].key_heads, _PREFIX, sites[0].head_size)
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randn(shape, generator=generator).to(backbone.device)
    mask = torch.ones_like(loaded.token_ids)[None]
    places = torch.arange(len(loaded.token_ids), device=mask.device)[None]
    with torch.no_grad():
        states = backbone.encode(
            backbone.embed(loaded.token_ids[None]),
            attention_mask=mask,
            position_ids=places,
            steering=steer([Tuned(prefix=prefix)]),
        )[0]
    return bool(states.isfinite().all()) and not _is_close(states, _encode(backbone, loaded), backbone.dtype)


def _knows_second_texts(backbone: Backbone, loaded: Loaded) -> bool:
    if loaded.states_of_two is None or backbone.segment_shift is None:
        return False
    second = torch.arange(len(loaded.token_ids), device=backbone.device) >= len(loaded.token_ids) - SECOND
    states = _encode(backbone, loaded, shift=second[:, None] * backbone.segment_shift)
    return _is_close(states, loaded.states_of_two, backbone.dtype)


def _scores_words(backbone: Backbone, loaded: Loaded) -> bool:
    if loaded.logits is None:
        return False
    with torch.no_grad():
        states = loaded.states[None]
        if backbone.decoder is not None:
            mask = torch.ones_like(loaded.token_ids)[None]
            states = backbone.decode(loaded.token_ids[None], encoder_states=states, encoder_mask=mask)
        try:
            own = backbone.word_logits(states)[0]
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError):  # a head that needs the layers
            return False
    return own.shape == loaded.logits.shape and _is_close(own, loaded.logits, backbone.dtype)


def _is_close(states: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    size = wanted.abs().mean().clamp(min=1e-12)
    return bool(((states - wanted).abs().mean() / size) <= _TOLERANCE.get(dtype, _SHORT_TOLERANCE))


def _make_refused_error(backbone: Backbone, law: str) -> UsageError:
    return UsageError(
        f"a model of architecture {backbone.architecture!r} cannot be served: {law}; choose another model"
    )

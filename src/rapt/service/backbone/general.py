"""Any common architecture, admitted by laws and not by its name.

What `ARCHITECTURES` does not name is loaded by the library's own choice of classes, and then has to show, in a second,
that the rest of the room may do with it what it does with the named ones. Each law is computed on a few public tokens,
against the model as the library runs it by itself. A model that breaks one is refused, with the law.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from rapt.errors import UsageError, VocabularyError
from rapt.service.backbone.architectures import Kind, LanguageHead, Parts
from rapt.service.backbone.library import find_kinds, quiet
from rapt.service.backbone.steering import Tuned, steer

if TYPE_CHECKING:
    from rapt.service.backbone.backbone import Backbone

_TOKENS: Final = 7
_PREFIX: Final = 2
# Largest difference from the model's own states, as a share of their size, in float32 and in a shorter type.
_TOLERANCE: Final = {torch.float32: 1e-3}
_SHORT_TOLERANCE: Final = 0.05


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """A model that is to be admitted.

    Attributes:
        kind: Kind of attention.
        parts: Parts of the model.
        token_ids: Public tokens that the laws are computed on, (T,).
        states: Last-layer states of the model itself for them, (T, h), float32.
        logits: Scores of words after them, (T, V), float32; None where it has no language head.
    """

    kind: Kind
    parts: Parts
    token_ids: Tensor
    states: Tensor
    logits: Tensor | None

    def to(self, device: torch.device) -> Loaded:
        """The same with its tensors on a device, where the parts are already."""
        logits = None if self.logits is None else self.logits.to(device)
        return replace(self, token_ids=self.token_ids.to(device), states=self.states.to(device), logits=logits)


def find_window(config: Mapping[str, Any]) -> int | None:
    """Return how far a model sees whose layers see a window only: longer texts would need masks of two kinds."""
    config = config.get("text_config") or config
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", True)
    return window if slides and type(window) is int and window > 0 else None


def load_general(
    folder: Path, *, config: Mapping[str, Any], dtype: torch.dtype, eligible: Tensor, model: str
) -> Loaded:
    """Load a model whose `model_type` no entry names, and ask it for its own states before anything is changed in it.

    Args:
        folder: Folder in Hugging Face's layout.
        config: Content of its `config.json`.
        dtype: Type of the weights.
        eligible: Ids that may be an output, of which a few are read.
        model: Name of the model, for messages.

    Raises:
        UsageError: It is of a kind that is not served, or the library does not know it.
        VocabularyError: Files of the model are missing or damaged.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    kind = _find_kind(config)
    auto: Any = AutoModelForCausalLM if kind == "decoder" else AutoModel
    try:
        with quiet():
            whole: Any
            whole, notes = auto.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, AttributeError):
        raise VocabularyError(
            f"model={model!r} must have config.json and model.safetensors that fit each other, of an architecture that "
            "the installed transformers knows; install it again, or upgrade transformers"
        ) from None
    # A weight that is not there is made up by the library. A pooler is not used here.
    missing = [name for name in notes["missing_keys"] if "pooler" not in name]
    if missing:
        raise VocabularyError(
            f"model={model!r} must have all weights of its architecture {config.get('model_type')!r}, got "
            f"{len(missing)} too few; take another checkpoint"
        )
    whole.eval()
    base: nn.Module = whole.base_model if kind == "decoder" else whole
    ids = eligible[torch.linspace(0, len(eligible) - 1, _TOKENS).long()]
    with torch.no_grad():
        found = base(input_ids=ids[None])
        states = found.last_hidden_state[0].float()
        logits = whole(input_ids=ids[None]).logits[0].float() if kind == "decoder" else None
    head = None
    if kind == "decoder" and (output := whole.get_output_embeddings()) is not None:
        scale = 1.0 / float(getattr(whole.config, "logits_scaling", 1.0) or 1.0)
        head = LanguageHead(output.weight, bias=getattr(output, "bias", None), scale=scale)
    parts = Parts(
        whole=whole,
        encoder=base,
        language_head=head,
        takes_positions="position_ids" in inspect.signature(type(base).forward).parameters,
    )
    return Loaded(kind=kind, parts=parts, token_ids=ids, states=states, logits=logits)


def _find_kind(config: Mapping[str, Any]) -> Kind:
    name = str(config.get("model_type"))
    asked = str((config.get("architectures") or [""])[0])
    kinds = find_kinds(name)
    if config.get("is_encoder_decoder") or "encoder-decoder" in kinds:
        raise UsageError(
            f"a model of architecture {name!r} cannot be served: of the models with two halves T5 and its like are"
        )
    if "encoder" in kinds and not asked.endswith(("ForCausalLM", "LMHeadModel")):
        return "encoder"
    if "decoder" in kinds:
        return "decoder"
    raise UsageError(
        f"a model of architecture {name!r} cannot be served: the installed transformers has no encoder or decoder of it"
    )


def find_table(loaded: Loaded, table: Tensor) -> Tensor:
    """Return the vectors that the model itself puts in for each token, (V, h): scaled, where the model scales them."""
    own: Any = loaded.parts.whole.get_input_embeddings()
    with torch.no_grad():
        found: Tensor = own(torch.arange(len(table), device=loaded.token_ids.device)).float()
    return found


def admit(backbone: Backbone, loaded: Loaded) -> Backbone:
    """Return the backbone as it may be used, once every law holds.

    Raises:
        UsageError: A law is broken, and which.
    """
    if loaded.states.shape[1] != backbone.hidden_size:
        raise _refused(
            backbone,
            f"its table must be as wide as its states, got {backbone.hidden_size} and {loaded.states.shape[1]} numbers",
        )
    found = None
    # Some count positions from behind the id of the filler (RoBERTa and its like), MPNet from 2 whatever that is.
    for offset in dict.fromkeys((0, backbone.frame.pad_id + 1, 2)):
        tried = replace(backbone, position_offset=offset)
        if _is_close(_encode(tried, loaded), loaded.states, backbone.dtype):
            found = tried
            break
    if found is None:
        raise _refused(backbone, "vectors that are put in must give the states that the model gives for their tokens")
    laws: dict[str, Callable[[Backbone, Loaded], bool]] = {
        "padding must change no state": _is_blind_to_padding,
        "a gradient must reach what is put in": _passes_gradients,
        "attention layers, where any are found, must take a prefix": _takes_a_prefix,
    }
    for law, holds in laws.items():
        if not holds(found, loaded):
            raise _refused(backbone, law)
    if loaded.logits is not None and found.language_head is not None:
        with torch.no_grad():
            own = found.word_logits(loaded.states)
        if not _is_close(own, loaded.logits, backbone.dtype):
            raise _refused(backbone, "its language head must be a table of words, with a bias or a scale at most")
    return found


def _encode(backbone: Backbone, loaded: Loaded, *, before: int = 0, after: int = 0) -> Tensor:
    """States of the tokens, (T, h), with so much padding on either side."""
    pad = loaded.token_ids.new_full((1,), backbone.pad_id)
    ids = torch.cat([pad.expand(before), loaded.token_ids, pad.expand(after)])[None]
    place = torch.arange(ids.shape[1], device=ids.device)[None] - before
    real = (place >= 0) & (place < len(loaded.token_ids))
    with torch.no_grad():
        states = backbone.encode(backbone.embed(ids), attention_mask=real.long(), position_ids=place.clamp(min=0))
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
    states = backbone.encode(vectors, attention_mask=mask, position_ids=torch.arange(_TOKENS, device=mask.device)[None])
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
    places = torch.arange(_TOKENS, device=mask.device)[None]
    with torch.no_grad():
        states = backbone.encode(
            backbone.embed(loaded.token_ids[None]),
            attention_mask=mask,
            position_ids=places,
            steering=steer([Tuned(prefix=prefix)]),
        )[0]
    return bool(states.isfinite().all()) and not _is_close(states, _encode(backbone, loaded), backbone.dtype)


def _is_close(states: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    size = wanted.abs().mean().clamp(min=1e-12)
    return bool(((states - wanted).abs().mean() / size) <= _TOLERANCE.get(dtype, _SHORT_TOLERANCE))


def _refused(backbone: Backbone, law: str) -> UsageError:
    return UsageError(
        f"a model of architecture {backbone.architecture!r} cannot be served: {law}; choose another model"
    )

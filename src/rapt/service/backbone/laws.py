"""The laws that admit a model: what the rest of the room does with it must give what the model gives by itself.

Each law is computed at start, on a few public tokens, against the numbers that `general` asked the model for before
anything in it was changed. A model that breaks one is refused, with the law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from rapt.errors import UsageError, VocabularyError
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.general import SECOND, Loaded
from rapt.service.backbone.steering import Tuned, steer

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
        raise _refused(backbone, law)
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
    if found.segment_shift is not None and not _knows_second_texts(found, loaded):
        found = replace(found, segment_shift=None)
    if found.language_head is None or _scores_words(found, loaded):
        return found
    if found.kind == "encoder":
        return replace(found, language_head=None)  # it classifies by a head of its own, and reads no words
    raise _refused(backbone, "its language head must be a table of words, with a bias, a scale or a cap at most")


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


def _refused(backbone: Backbone, law: str) -> UsageError:
    return UsageError(
        f"a model of architecture {backbone.architecture!r} cannot be served: {law}; choose another model"
    )

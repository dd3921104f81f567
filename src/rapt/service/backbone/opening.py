"""From a name or a folder to a backbone: files are read, a model is put together, and the laws admit it.

A codebook, and a reader before another backbone, are opened like a language model.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from rapt.errors import UsageError, VocabularyError
from rapt.public_models import find_model_folder, name_model
from rapt.service.backbone.architectures import ALIASES, ARCHITECTURES, load_parts
from rapt.service.backbone.backbone import Backbone, Weights
from rapt.service.backbone.codewords import ARCHITECTURE as CODES
from rapt.service.backbone.codewords import FRAME, CodeStates, load_reader, view_as_vocabulary
from rapt.service.backbone.frame import frame_of, read_chat_frame
from rapt.service.backbone.general import admit, check_weights, find_table, find_window, load_general
from rapt.service.backbone.injection import Sites, install, install_where_it_can
from rapt.service.backbone.library import import_library, make_loading_arguments
from rapt.service.backbone.noise_expected import read_noise_expected, read_soft_embeddings
from rapt.service.backbone.placement import (
    MAP_VARIABLE,
    choose_device,
    move_to,
    prefers_bfloat16,
    room_for,
    spread,
)
from rapt.wire.code_bundle import holds_code_bundle, read_code_bundle
from rapt.wire.model_files import hash_model
from rapt.wire.public_states import read_public_states
from rapt.wire.reader_bundle import ReaderBundle, holds_reader_bundle, read_reader_bundle
from rapt.wire.vocabulary_bundle import read_model_bundle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal["auto", "float32", "bfloat16"]


@functools.lru_cache(maxsize=4)
def load_backbone(
    model: str,
    *,
    precision: Precision = "auto",
    device: str = "auto",
    behind: str | None = None,
    weights: Weights = "whole",
    device_map: str = "",
) -> Backbone:
    """The named model, frozen; loading it twice gives the same object.

    Args:
        model: A name in `PUBLIC_MODELS`, a folder in Hugging Face's layout, of a code bundle or of a reader, or a name
            of the hub that is in its local cache.
        precision: `auto` takes bfloat16 where it is measured to be faster on this processor, else float32.
        device: Name of a device that `choose_device` takes.
        behind: Name or folder of the backbone that a reader was trained for; None goes by the name in the reader.
        weights: `8bit` and `4bit` keep the linear layers in as many bits, by a package of the extra `[quantized]`.
        device_map: Devices of the layers, as `spread` takes it.

    Raises:
        VocabularyError: The model's files are missing or damaged, or a reader was trained for another backbone.
        UsageError: The model's architecture is not one of `ARCHITECTURES`, and breaks a law of `general`; or the device
            is not there, or too small for the model.
    """
    folder, model = find_model_folder(model), name_model(model)
    place = choose_device(device)
    if holds_reader_bundle(folder):
        bundle_read = read_reader_bundle(folder)
        base = behind or bundle_read.model
        return _read_through(
            bundle_read, base, model=model, precision=precision, device=device, weights=weights, device_map=device_map
        )
    if holds_code_bundle(folder):
        return _load_codes(folder, model=model, place=place)
    device_map = device_map or os.environ.get(MAP_VARIABLE, "")
    if device_map and weights != "whole":
        raise UsageError(f"a device map spreads whole weights, got weights={weights}; leave out one of the two")
    bundle = read_model_bundle(folder, model=model)
    config = json.loads((folder / "config.json").read_bytes())
    architecture = str(config.get("model_type"))
    architecture = ALIASES.get(architecture, architecture)
    dtype = choose_dtype(precision, place)
    with room_for(model, place):
        loaded, more = None, make_loading_arguments(weights, dtype=dtype, device=place)
        if architecture in ARCHITECTURES:
            kind = ARCHITECTURES[architecture].kind
            parts = load_parts(architecture, folder, dtype=dtype, model=model, more=more)
        else:
            eligible = torch.from_numpy(bundle.eligible.copy())
            loaded = load_general(folder, config=config, dtype=dtype, eligible=eligible, model=model, more=more)
            kind, parts = loaded.kind, loaded.parts
        whole: nn.Module = parts.whole
        check_weights(whole, parts.language_head, model=model)
        # Before the layers are prepared: whatever computes one again fetches its weights again.
        fetches = spread(place, whole.requires_grad_(False).eval(), device_map=device_map, model=model)
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
        own_forward = parts.own_forward if not device_map else None  # of weights that are in one place
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
            own_forward=None if own_forward is None else own_forward.to(place),
            expects=read_noise_expected(folder),
            chat=chat,
            weights=weights,
            fetches_layers=fetches,
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
        public_states=read_public_states(folder, encoder_hash=code.encoder_hash, width=len(code.center)),
    )


def _read_through(
    reader: ReaderBundle,
    base: str,
    *,
    model: str,
    precision: Precision,
    device: str,
    weights: Weights,
    device_map: str,
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
    backbone = load_backbone(
        base, precision=precision, device=device, behind=None, weights=weights, device_map=device_map
    )
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
    device_map: str = "",
) -> Backbone:
    """A model under the name that it is served by, which is the last part of a folder's. Raises as `load_backbone`.

    Args:
        model: Known name or folder.
        name: Name that it is served under.
        precision: Number format of the frozen weights.
        device: Name of a device that `choose_device` takes.
        weights: Form in which those of linear layers are kept, as in `load_backbone`.
        device_map: Devices of the layers, as `spread` takes it.
        served: All served models by name, among which a reader finds its backbone first.
    """
    folder = find_model_folder(model)
    behind = (served or {}).get(read_reader_bundle(folder).model) if holds_reader_bundle(folder) else None
    backbone = load_backbone(
        model, precision=precision, device=device, behind=behind, weights=weights, device_map=device_map
    )
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


def import_for(models: Iterable[str]) -> None:
    """Import what loading these models takes: of a codebook nothing, of others the library, which takes seconds.

    Raises:
        VocabularyError: The files of one are missing.
    """
    if not all(holds_code_bundle(find_model_folder(model)) for model in models):
        import_library()


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Choose the number format that a backbone computes in on a device."""
    if precision == "auto":
        faster = prefers_bfloat16(device) if device.type == "cuda" else _measure_bfloat16_speedup() > 1.2
        return torch.bfloat16 if faster else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@functools.cache
def _measure_bfloat16_speedup() -> float:
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

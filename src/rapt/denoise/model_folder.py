"""The folder of a backbone that expects noise: the original's files with other weights, and a card that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.denoise.plan import Explained, WarmUpPlan
from rapt.denoise.student import Student
from rapt.errors import UsageError
from rapt.public_models import find_model_folder, name_model
from rapt.service.backbone.architectures import Architecture
from rapt.service.backbone.noise_expected import CARD, SCHEMA, SOFT_EMBEDDINGS, soft_embeddings_file
from rapt.version import __version__
from rapt.whole_files import write_folder
from rapt.wire.vocabulary_bundle import check_hash, read_model_bundle

_WEIGHTS: Final = "model.safetensors"
# Checkpoints that were converted from TensorFlow call a norm gamma and beta.
_OLD_NAMES: Final = ((".gamma", ".weight"), (".beta", ".bias"))


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something, before hours of work.

    Raises:
        UsageError: The folder holds something, or is none.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError("`out` must be a new or empty folder; choose another name")


def check_source(model: str) -> None:
    """Refuse a model whose weights are in several files, before hours of work.

    Raises:
        UsageError: The weights are in several files.
        VocabularyError: The model is not here.
    """
    if not (find_model_folder(model) / _WEIGHTS).is_file():
        raise UsageError(f"a model to be denoised must have its weights in one {_WEIGHTS}; save it without shards")


def save_denoised(
    student: Student, folder: Path, *, plan: WarmUpPlan, explained: Sequence[Explained], texts: int, tokens: int
) -> None:
    """Write the folder, whole or not at all; `rapt serve --model FOLDER` serves it.

    Args:
        student: Student, as trained.
        folder: New or empty.
        plan: Plan of the warm-up.
        explained: Agreement with the teacher at each η.
        texts: Public windows trained on.
        tokens: Tokens in these windows.

    Raises:
        UsageError: The folder holds something, or cannot be written.
        VocabularyError: The result would have another vocabulary than the original.
    """
    check_target(folder)
    source = find_model_folder(plan.model)
    trained = student.encoder.state_dict()
    weights = {
        name: _replaced(name, tensor, trained, layers=student.layers)
        for name, tensor in load_file(source / _WEIGHTS).items()
    }
    card: dict[str, Any] = {
        "schema": SCHEMA,
        "created_by": f"rapt {__version__}",
        "base_model": name_model(plan.model),
        "vocabulary_hash": student.teacher.bundle.hash,
        "plan": asdict(plan) | {"model": name_model(plan.model), "options": dict(plan.options)},
        "precision": str(student.teacher.dtype).removeprefix("torch."),
        "public_texts": texts,
        "public_tokens": tokens,
        "explained": [asdict(item) for item in explained],
    }
    files = {path.name: path.read_bytes() for path in source.glob("*.json") if path.is_file()}
    files[_WEIGHTS] = save_tensors(weights, metadata={"format": "pt"})
    if student.soft_embeddings is not None:
        files[SOFT_EMBEDDINGS] = soft_embeddings_file(student.soft_embeddings)
    files[CARD] = _card_file(card)
    _write(folder, files, vocabulary_hash=student.teacher.bundle.hash)


def _card_file(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card, indent=1, allow_nan=False).encode() + b"\n"


def _write(folder: Path, files: Mapping[str, bytes], *, vocabulary_hash: str) -> None:
    try:
        write_folder(folder, files)
    except OSError as error:
        raise UsageError(
            f"`out` must be writable, got {error.strerror or type(error).__name__}; choose another"
        ) from None
    check_hash(read_model_bundle(folder, model=folder.name), expected=vocabulary_hash)


def _replaced(name: str, tensor: Tensor, trained: Mapping[str, Tensor], *, layers: Architecture) -> Tensor:
    """The trained tensor of that name in a checkpoint, or the tensor as it was: of a head, or of the embeddings."""
    inner = name.removeprefix(layers.prefix)
    for old, new in _OLD_NAMES:
        inner = inner.removesuffix(old) + new if inner.endswith(old) else inner
    if inner not in trained or inner.startswith(layers.left_alone):
        return tensor
    return trained[inner].detach().to("cpu", tensor.dtype).contiguous()

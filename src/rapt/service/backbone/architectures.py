"""The architectures that there are: a closed dict, each with a module that is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast

import torch

from rapt.errors import VocabularyError
from rapt.service.backbone.backbone_parts import Kind, Parts


@dataclass(frozen=True)
class Architecture:
    """How a `model_type` is read: what kind it is, and the module that loads it, imported when it is asked for."""

    kind: Kind
    module: str


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "bert": Architecture("encoder", "rapt.service.backbone.backbone_bert"),
    "t5": Architecture("encoder-decoder", "rapt.service.backbone.backbone_t5"),
    "llama": Architecture("decoder", "rapt.service.backbone.backbone_llama"),
    "gpt2": Architecture("decoder", "rapt.service.backbone.backbone_gpt2"),
}


class _Loader(Protocol):
    def load(self, folder: Path, *, dtype: torch.dtype) -> Parts: ...


def load_parts(architecture: str, folder: Path, *, dtype: torch.dtype, model: str) -> Parts:
    """The parts of a model in a folder, by its `model_type`.

    Raises:
        VocabularyError: Its files are missing or damaged.
    """
    loader = cast(_Loader, import_module(ARCHITECTURES[architecture].module))
    try:
        return loader.load(folder, dtype=dtype)
    except (OSError, RuntimeError):  # a size that does not fit is a RuntimeError; both messages may name paths
        raise VocabularyError(
            f"model={model!r} must have config.json and model.safetensors that fit each other; install it again"
        ) from None

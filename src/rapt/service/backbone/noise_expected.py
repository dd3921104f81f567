"""The noise that a backbone expects: the files beside its weights that `rapt denoise` writes and `rapt serve` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.errors import VocabularyError
from rapt.wire.mechanism_setting import MechanismSetting, Parameter

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


def make_soft_embeddings_file(table: Tensor) -> bytes:
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

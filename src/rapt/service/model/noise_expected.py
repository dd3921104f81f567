"""What noise a backbone expects: the card beside its weights that `rapt denoise` writes and `rapt serve` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapt.errors import VocabularyError
from rapt.wire.manifest import MechanismSetting, Parameter

SCHEMA: Final = "rapt.denoised-backbone/1"
CARD: Final = "denoising.json"
# A backbone for several η serves those between them, and a little beyond. How far is right was not measured: on SST-2
# with MiniLM 52 % of the tokens are unchanged at η = 75, and 61 % at 80.
_SLACK: Final = 1.1


@dataclass(frozen=True, kw_only=True)
class NoiseExpected:
    """The settings that a backbone was distilled for.

    Attributes:
        mechanism: Its name.
        options: Its parameters but η.
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
    """What the card in a model folder says; None where there is no card.

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

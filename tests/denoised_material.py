"""A folder of a backbone with a card that says it expects noise."""

from __future__ import annotations

import json
from pathlib import Path

from rapt.public_models import find_model_folder
from rapt.service.backbone.noise_expected import CARD, SCHEMA

ETAS = (85.0, 110.0)


def write_denoised(folder: Path, *, model: str = "bert-tiny", etas: tuple[float, ...] = ETAS) -> Path:
    """A tiny backbone as it is, with a card that says it expects noise."""
    folder.mkdir(parents=True)
    for path in find_model_folder(model).iterdir():
        if path.suffix in (".json", ".safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    plan = {"mechanism": "laplace", "options": {}, "etas": etas}
    (folder / CARD).write_text(json.dumps({"schema": SCHEMA, "plan": plan}))
    return folder

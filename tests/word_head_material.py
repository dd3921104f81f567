"""A language with strong structure, and folders with a word head for it or with one that was never trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rapt.public_models import model_directory
from rapt.service.model.backbone import load_backbone
from rapt.service.model.noise_expected import CARD, SCHEMA
from rapt.service.model.word_head import WORD_HEAD, WordHead, word_head_file

ETAS = (85.0, 110.0)


def write_denoised(folder: Path, *, etas: tuple[float, ...] = ETAS) -> Path:
    """The tiny backbone as it is, with a card that says it expects noise."""
    folder.mkdir(parents=True)
    for path in model_directory("bert-tiny").iterdir():
        if path.suffix in (".json", ".safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    plan = {"mechanism": "laplace", "options": {}, "etas": etas}
    (folder / CARD).write_text(json.dumps({"schema": SCHEMA, "plan": plan}))
    return folder


def untrained_head(model: str, *, doubtful: bool = False) -> WordHead:
    """One that takes a word that arrived to be as likely the true one as not, and all others for alike.

    Or one of doubt, for which a few words are much more frequent than all others: what it reads differs from copying.
    """
    table = torch.from_numpy(load_backbone(model, precision="float32").bundle.embeddings.copy())
    prior = torch.zeros(len(table))
    if doubtful:
        prior -= 12.0
        prior[3000:3008] = -3.0
    return WordHead(table, log_prior=prior, generator=torch.Generator().manual_seed(0))


def write_reading(folder: Path, *, etas: tuple[float, ...] = ETAS) -> Path:
    """The same with a head of doubt."""
    write_denoised(folder, etas=etas)
    (folder / WORD_HEAD).write_bytes(word_head_file(untrained_head("bert-tiny", doubtful=True)))
    return folder

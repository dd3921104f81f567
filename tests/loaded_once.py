"""What every process of `warm_processes` finds imported and loaded: the service, the library of models, and a model."""

from __future__ import annotations

from importlib import import_module

import torch

from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings

for module in ("transformers.models.llama.modeling_llama", "rapt.service.http.server"):
    import_module(module)
torch.set_num_threads(1)  # before anything runs: a pool of threads does not survive a fork
BACKBONES = load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))

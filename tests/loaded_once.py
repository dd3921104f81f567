"""What every process of `warm_processes` finds imported and loaded: the service, the library of models, and a model."""

from __future__ import annotations

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  # imported for the processes that come

from rapt.service.http.assembly import load_backbones
from rapt.service.http.server import serve  # noqa: F401  # as above
from rapt.service.http.settings import load_settings

torch.set_num_threads(1)  # before anything runs: a pool of threads does not survive a fork
BACKBONES = load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))

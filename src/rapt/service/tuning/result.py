"""The adapter that a run leaves: the method's parts, the task head, and a card that says where they came from."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rapt.service.adapter.adapter import Adapter
from rapt.service.adapter.task_head import TaskHead
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import LoraPair, Tuned
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.methods import tuned_parts
from rapt.service.tuning.tuning_config import TuningConfig, card_settings
from rapt.version import __version__
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.privatized_file import PrivatizedFile


@torch.no_grad()
def adapter_of(
    backbone: Backbone,
    training: PrivatizedFile,
    tuning: Tuning,
    *,
    config: TuningConfig,
    metrics: Mapping[str, float | int],
) -> Adapter:
    """A copy of what `tuning` holds now. The reconstruction head is dropped here (RAPT, Sec. 3)."""
    manifest = training.manifest
    tuned = _detached(tuned_parts(tuning.method))
    settings = card_settings(config) | {"records": manifest.records, "pairs": manifest.pairs}
    if manifest.label_privacy is not None:
        settings |= {"label_epsilon": float(manifest.label_privacy.epsilon)}
    card = AdapterCard(
        model=backbone.model,  # not the file's: it may name another of the same vocabulary
        vocabulary_hash=manifest.vocabulary_hash,
        kind=backbone.kind,
        method=config.method,
        task=config.task,
        labels=() if config.task == "generation" else manifest.labels or (),
        mechanism=manifest.mechanism,
        plain_tokens=0 if config.reconstruction is None else manifest.plain_tokens.count,
        prompt_length=tuned.prompt_length if tuned.prefix is None else tuned.prefix.shape[3],
        training=settings,
        metrics=dict(metrics),
        weights_sha256="",
        created_by=f"rapt {__version__}",
    )
    head = dict(tuning.task_head.named_parameters())
    none = torch.zeros(0, backbone.hidden_size, device=backbone.device)
    return Adapter(
        tuned=tuned,
        head_weight=head["linear.weight"].detach().clone() if head else none,
        head_bias=head["linear.bias"].detach().clone() if head else none[:, 0],
        compares=isinstance(tuning.task_head, TaskHead) and tuning.task_head.compares,
        card=card,
    )


def _detached(tuned: Tuned) -> Tuned:
    return Tuned(
        prompt=None if tuned.prompt is None else tuned.prompt.detach().clone(),
        prefix=None if tuned.prefix is None else tuned.prefix.detach().clone(),
        lora={
            name: LoraPair(a=pair.a.detach().clone(), b=pair.b.detach().clone()) for name, pair in tuned.lora.items()
        },
    )

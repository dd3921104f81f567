"""Method `auto`: what this service knows to work best for a file, decided when the job is made.

The backbone is, of those that are served with the vocabulary that was asked for, one that was distilled for the noise
of the file (`rapt denoise`): on SST-2 that is worth more than anything else that was tried at no cost in privacy
(docs/results.md). On such an encoder a task head learns more by itself than beside a prompt, so the method is linear
probing. Where no such backbone is served, it is the one that was asked for, and prompt tuning.
"""

from __future__ import annotations

from collections.abc import Iterable

from rapt.service.jobs.method_options import PromptTuningOptions
from rapt.service.model.backbone import Backbone
from rapt.service.model.tuning_config import LINEAR_PROBING, PROMPT_TUNING
from rapt.service.storage.file_rows import StoredFile
from rapt.wire.manifest import mechanism_from_json


def best_backbone(asked: Backbone, served: Iterable[Backbone], *, file: StoredFile) -> Backbone:
    """The served backbone to tune on; of several that expect the file's noise, the one for the fewest settings."""
    setting = mechanism_from_json(file.mechanism)
    if asked.expects is not None and asked.expects.covers(setting):
        return asked
    fitting = [
        (len(backbone.expects.etas), backbone.model, backbone)
        for backbone in served
        if backbone.expects is not None
        and backbone.bundle.hash == asked.bundle.hash
        and backbone.expects.covers(setting)
    ]
    return min(fitting, key=lambda item: item[:2])[2] if fitting else asked


def best_method(asked: PromptTuningOptions, backbone: Backbone, *, file: StoredFile) -> str:
    """The method for a file on the backbone that was found for it; whoever sets what only a prompt has gets one."""
    own = asked.hyperparameters
    of_a_prompt = own.num_virtual_tokens != "auto" or own.initialization != "auto" or own.init_text is not None
    reconstructs = own.reconstruction is not None and own.reconstruction != "auto"
    expected = backbone.expects is not None and backbone.expects.covers(mechanism_from_json(file.mechanism))
    classifies = own.task in ("auto", "classification")
    if expected and classifies and backbone.kind == "encoder" and not (of_a_prompt or reconstructs):
        return LINEAR_PROBING
    return PROMPT_TUNING

"""Method `auto`: what this service knows to work best for a file, decided when the job is made.

The method is prompt tuning. The backbone is, of those that are served with the vocabulary that was asked for, one that
was distilled for the noise of the file (`rapt denoise`): on SST-2 that is worth more than anything else that was tried
at no cost in privacy (docs/results/tuning.md). Where none is served, it is the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from rapt.service.backbone.backbone import Backbone
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

"""Checkpoints: adapters at the ends of epochs, kept as models that can be asked before and after the run has ended."""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from rapt.service.adapter.adapter import Adapter, adapter_to_files
from rapt.service.jobs.progress_events import validation_figures
from rapt.service.storage.checkpoint_models import add_checkpoint_model
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.store import Store
from rapt.service.tuning.tuner import Progress
from rapt.wire.adapter_files import pack_adapter

log = logging.getLogger(__name__)

# A run of more epochs has its checkpoints further apart, so that no job fills the disk. The last epoch has one always,
# also where a run stops early; then the one of its last step that was planned is missing, so there are no more of them.
MOST_CHECKPOINTS: Final = 10


class EpochCheckpoints:
    """The checkpoints of one job."""

    def __init__(self, store: Store, job: StoredJob, *, epochs: int, max_bytes: int) -> None:
        """Keep at most `MOST_CHECKPOINTS` of a run of so many epochs, as long as the tenant's bytes have room."""
        self._store = store
        self._job = job
        self._epochs = epochs
        self._every = math.ceil(epochs / MOST_CHECKPOINTS)
        self._max_bytes = max_bytes

    def keep(self, progress: Progress, adapter: Adapter) -> None:
        """An epoch has ended with this step."""
        epoch = progress.epoch + 1
        # Counted from the last one back.
        if (self._epochs - epoch) % self._every and not progress.last:
            return
        with self._store.directory.stage_bytes(pack_adapter(adapter_to_files(adapter))) as staged:
            outcome = add_checkpoint_model(
                self._store,
                self._job,
                staged,
                step=progress.step,
                metrics=_figures(progress),
                now=int(time.time()),
                max_bytes=self._max_bytes,
            )
        if outcome == "no room":
            log.warning("job %s: no room for the checkpoint of step %d", self._job.id, progress.step)


def _figures(progress: Progress) -> dict[str, float | int]:
    """Under the names that OpenAI gives them; losses in nats."""
    return {
        "step": progress.step,
        "train_loss": progress.task_loss,
        "train_mean_token_accuracy": progress.accuracy,
        **validation_figures(progress),
    }

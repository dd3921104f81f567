"""Figures of jobs as TensorBoard's event files, for the provider: ids, numbers and times, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapt.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


def check_job_log(folder: Path) -> None:
    """Refuse a log that could not be written, before any job runs.

    Raises:
        UsageError: TensorBoard's writer is not installed, or the folder cannot be made.
    """
    if find_spec("tensorboard") is None:
        raise UsageError("the setting job_log needs the package tensorboard; run: pip install tensorboard")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"the setting job_log must name a folder that can be written, got {reason}") from None


class JobLog:
    """Log of one job, in a folder of its tenant and its id; a job that goes on later goes on in it.

    A disk that is full ends the log and not the job.
    """

    def __init__(self, folder: str | None, *, tenant: str, job_id: str) -> None:
        """Begin nothing yet; None keeps no log."""
        self._folder = None if folder is None else Path(folder) / tenant / job_id
        self._writer: SummaryWriter | None = None

    def add(self, figures: Mapping[str, Any]) -> None:
        """Write the numbers of an event under its `step`."""
        if self._folder is None:
            return
        step = int(figures["step"])
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # What an earlier run wrote of this step and later ones is made again.
                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            for name, value in figures.items():
                if name != "step" and type(value) in (int, float):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            log.warning("the log of a job ends: %s", error.strerror or type(error).__name__)
            self._folder = None

    def close(self) -> None:
        """Close the file, if one was begun; a job that is done stays done whatever the disk says."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

"""Figures of jobs for the provider, as TensorBoard's event files or by its own logger: ids and numbers, no text."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rapt.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class JobLogger(Protocol):
    """What takes the figures of one job, made by the provider's function of `job_logger`."""

    def add(self, figures: Mapping[str, float], *, step: int) -> None:
        """Take the numbers of an event; a job that goes on after a crash repeats some steps."""

    def close(self) -> None:
        """Take no more: the job has ended, or gives way."""


def load_job_logger(name: str) -> Callable[[str, str], JobLogger]:
    """The provider's function, which makes the logger of a job from the names of its tenant and itself.

    Args:
        name: `module:function`.

    Raises:
        UsageError: There is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of the provider's raises while it is imported
        raise UsageError(
            f"the setting job_logger must name a function as module:function, got {type(error).__name__} from it; "
            "correct it, or put its folder into PYTHONPATH"
        ) from None
    if not callable(found):
        raise UsageError("the setting job_logger must name a function as module:function, got another thing")
    made: Callable[[str, str], JobLogger] = found
    return made


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

    def __init__(self, folder: str | None, *, tenant: str, job_id: str, logger: str | None = None) -> None:
        """Begin nothing yet; None keeps no files, and has no logger."""
        self._ids, self._logger = (tenant, job_id), logger
        self._own: JobLogger | None = None
        self._folder = None if folder is None else Path(folder) / tenant / job_id
        self._writer: SummaryWriter | None = None

    def add(self, figures: Mapping[str, Any]) -> None:
        """Write the numbers of an event under its `step`."""
        step = int(figures["step"])
        numbers = {name: value for name, value in figures.items() if name != "step" and type(value) in (int, float)}
        self._tell_logger(numbers, step)
        if self._folder is None:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # What an earlier run wrote of this step and later ones is made again.
                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            log.warning("the log of a job ends: %s", error.strerror or type(error).__name__)
            self._folder = None

    def _tell_logger(self, numbers: Mapping[str, float], step: int) -> None:
        if self._logger is None:
            return
        try:
            if self._own is None:
                self._own = load_job_logger(self._logger)(*self._ids)
            self._own.add(numbers, step=step)
        except Exception as error:  # code of the provider's, which ends its log and not the job
            log.warning("the logger of a job ends: %s", type(error).__name__)
            self._logger = None

    def close(self) -> None:
        """Close the file, if one was begun; a job that is done stays done whatever the disk says."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
        if self._own is not None:
            with suppress(Exception):  # likewise
                self._own.close()

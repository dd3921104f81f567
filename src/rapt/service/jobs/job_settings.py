"""What a provider sets about jobs: what one may take, how long it may keep others waiting, how often it is begun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapt.service.storage.job_runs import MOST_DEATHS

MEBIBYTE: Final = 1024 * 1024
# Where the memory of a control group stands: version 2, then 1.
_GROUPS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """How much one job may take; a larger one is refused when it is asked for.

    Attributes:
        memory_bytes: Of its run, beside the base model.
        hidden_size: Widest network of P-tuning, of a prefix, or of reconstruction.
        virtual_tokens: Longest prompt or prefix.
        rank: Of LoRA.
        classes: Most labels, or plain tokens to choose among.
        steps: Most steps of a run.
        records: Most records that a run reads: those of its file times its epochs.
        validation_records: Most records of its validation file, which is read in one go after each epoch.
    """

    memory_bytes: int
    hidden_size: int = 4096
    virtual_tokens: int = 256
    rank: int = 256
    classes: int = 10_000
    steps: int = 5_000_000
    records: int = 100_000_000
    validation_records: int = 50_000


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How jobs are run.

    Attributes:
        tenant_bytes: Of a tenant without a quota of its own; beyond it checkpoints are left out.
        limits: What one job may take.
        between_checkpoints: How much work a crash may cost, s.
        slice_seconds: After so long a job gives way to a waiting one of another tenant, s; 0 never.
        most_deaths: A job that has killed what runs it so often, without getting any further, fails.
    """

    tenant_bytes: int
    limits: JobLimits
    between_checkpoints: float = 15.0
    slice_seconds: float = 300.0
    most_deaths: int = MOST_DEATHS


def half_of_the_memory() -> int:
    """Half of the memory that this machine, or the control group of this process, has; bytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _GROUPS:
        try:
            said = group.read_text().strip()
        except OSError:
            continue
        if said.isdecimal():
            whole = min(whole, int(said))
    return max(whole // 2, MEBIBYTE)

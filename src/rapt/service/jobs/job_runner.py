"""What the rest of the service asks of whatever runs the jobs, and nothing more.

Jobs live in the store; a runner takes them from there. So a runner can be a thread, another process or a durable
workflow engine, and nothing else changes.
"""

from __future__ import annotations

from typing import Protocol


class JobRunner(Protocol):
    """Runs queued jobs, in the order of the queue."""

    def start(self) -> None:
        """Begin to run jobs, also those that were queued before."""

    def wake(self) -> None:
        """A job was queued."""

    def cancel(self, job_id: str) -> None:
        """A job was cancelled, paused or deleted in the store; if it runs here, stop within a step."""

    def is_alive(self) -> bool:
        """Whether jobs are run."""

    def stop(self) -> None:
        """Take no more jobs, and stop the one that runs within a step; does not wait for it."""

    def close(self) -> None:
        """Stop within a step; a job that was running is queued again."""

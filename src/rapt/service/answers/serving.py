"""A backbone that many callers share: its batcher, fed with rows that were checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rapt.service.answers.batching import Batcher, BatchLimits, Ticket
from rapt.service.answers.inference import ClassificationRow, check_row, classify_pass, plan
from rapt.service.backbone.backbone import Backbone

Answer = tuple[float, ...]


class Predictor:
    """Predictions of one backbone; safe to use from many threads and event loops."""

    def __init__(self, backbone: Backbone, *, limits: BatchLimits | None = None) -> None:
        """Start the thread that computes."""
        self._backbone = backbone
        self._batcher: Batcher[ClassificationRow, Answer] = Batcher(
            lambda rows: classify_pass(backbone, rows),
            plan=partial(plan, device=backbone.device.type),
            cost=lambda row: row.positions,
            limits=limits,
            name=f"rapt-predictor-{backbone.model}",
        )

    def submit(self, rows: Sequence[ClassificationRow], *, tenant: str) -> Ticket[Answer]:
        """Let a caller's rows wait for their turn; the answers are those of `classify`.

        Raises:
            UsageError: A row cannot be answered.
            BusyError: Too much waits already.
            UnavailableError: The service is stopping.
        """
        for position, row in enumerate(rows):
            check_row(self._backbone, row, position=position)
        return self._batcher.submit(rows, tenant=tenant)

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget a caller that has left."""
        self._batcher.cancel(ticket)

    def close(self) -> None:
        """Finish the pass that runs, refuse what waits, end the thread."""
        self._batcher.close()

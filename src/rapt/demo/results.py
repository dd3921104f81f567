"""What a demo found, as values: the table on the screen, the JSON and the report say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapt.audit.audit import AuditReport
from rapt.audit.intervals import Share, independent_share
from rapt.audit.report import report_to_json
from rapt.audit.report.values import Report
from rapt.demo.leak_check import LeakCheck
from rapt.demo.plan import DemoPlan


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The accuracy of one way to tune, on the queries.

    Attributes:
        name: For people.
        accuracy: Share of right answers, with Wilson's 95 % interval.
    """

    name: str
    accuracy: Share

    @classmethod
    def of(cls, name: str, predicted: Sequence[str], truth: Sequence[str]) -> Arm:
        """The arm of these predictions."""
        return cls(name=name, accuracy=independent_share(np.array(predicted) == np.array(truth)))


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that a demo found.

    Attributes:
        plan: What was done.
        arms: Upper bound, prompt tuning, RAPT.
        leak: The search through everything that the service kept.
        report: As it was written.
        seconds: The whole of it.
    """

    plan: DemoPlan
    arms: tuple[Arm, ...]
    leak: LeakCheck
    report: Report
    seconds: float

    @property
    def audit(self) -> AuditReport:
        """The attacks on the privatized training file."""
        return self.report.audit

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "plan": asdict(self.plan),
            "leak_check": asdict(self.leak),
            "seconds": self.seconds,
            "report": report_to_json(self.report),
        }

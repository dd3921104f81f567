"""What a demo found, as values: the table on the screen, the JSON and the report say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapt.audit.audit import AuditReport
from rapt.audit.intervals import Share, independent_share
from rapt.demo.leak_check import LeakCheck
from rapt.demo.plan import DemoPlan
from rapt.local.guarantee import PrivacyStatement


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
    """All that a demo found; it holds no text.

    Attributes:
        plan: What was done.
        arms: Upper bound, prompt tuning, RAPT.
        audit: The attacks on the privatized training file.
        unchanged: Share of its tokens that happened to stay as they were.
        statement: What the setting promises.
        leak: The search through everything that the service kept.
        seconds: The whole of it.
    """

    plan: DemoPlan
    arms: tuple[Arm, ...]
    audit: AuditReport
    unchanged: float
    statement: PrivacyStatement
    leak: LeakCheck
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "plan": asdict(self.plan),
            "arms": [{"name": arm.name, **asdict(arm.accuracy)} for arm in self.arms],
            "unchanged": self.unchanged,
            "attacks": [
                {
                    "name": result.attack,
                    "title": result.title,
                    "recovered": asdict(result.score.all_tokens.first),
                    "chance": result.score.all_tokens.chance,
                }
                for result in self.audit.results
            ],
            "statement": self.statement.to_json(),
            "leak_check": asdict(self.leak),
            "seconds": self.seconds,
        }

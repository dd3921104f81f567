"""Plan and findings of the demo, as values: the table on the screen, the JSON and the report say the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rapt.audit.audit import AuditReport
from rapt.audit.code_audit import CodeAudit, code_audit_to_json
from rapt.audit.report import report_to_json
from rapt.audit.report.values import Report, UtilityRow
from rapt.demo.leak_check import LeakCheck


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Sizes and settings of a demo.

    Attributes:
        model: Backbone and vocabulary.
        eta: Slope of the guarantee in 1/distance of the model's table.
        training: Number of training texts, even.
        queries: Number of queries, even.
        plain_tokens: m, public tokens before each text.
        plain_token_pool: |T|, how many words they are drawn from.
        plain_tokens_drawn: Once for the file, or anew for each record.
        prompt_length: P, vectors of the soft prompt.
        epochs: Passes over the training texts.
        reconstruction_weight: λ; None leaves it to the service.
        seed: Seed of the training runs, never of the noise.
        public_texts: Texts that the attacker learns the language from.
        attacked_tokens: Tokens that the attacks are run on, in whole records.
        shown: Sentences shown before and after.
        epsilon: ε of each whole tweet as a code.
        code_dimensions: k, numbers of a code.
        code_texts: Public tweets that the code is made of.
    """

    model: str = "minilm"
    # About half of the tokens of a text change: at 50 nothing is left to learn from, at 100 little is hidden.
    eta: float = 75.0
    # Three runs of tuning, three attacks and all the rest stay under 8 minutes on 2 cores that do other work as well.
    training: int = 1_600
    # The 95 % interval of an accuracy near 75 % is ± 2.7 points, the least that tells the three runs apart.
    queries: int = 1_000
    # Paper: 40 out of 7,630 words. Ours: fewer out of a small pool, because with thousands of classes and few texts
    # the reconstruction loss drowns the task. Effect: on utility only, plain tokens are public.
    plain_tokens: int = 20
    plain_token_pool: int = 500
    # One sequence for all records can be reconstructed from the positions alone, without looking at a token.
    plain_tokens_drawn: Literal["file", "record"] = "record"
    prompt_length: int = 10
    epochs: int = 3
    reconstruction_weight: float | None = None
    seed: int = 0
    # As many as the neutral tweets of the corpus give: the attacker knows how people tweet, but not these tweets.
    public_texts: int = 10_000
    # Half of an interval is then near one point; the whole file would cost more time than it adds.
    attacked_tokens: int = 12_000
    shown: int = 3
    # With so few contributors and a small encoder, 8 directions are all that the noise leaves.
    epsilon: float = 4.0
    code_dimensions: int = 8
    code_texts: int = 2_000


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that a demo found.

    Attributes:
        plan: Plan of the demo.
        rows: Upper bound, prompt tuning, RAPT, and codes asked at home and privately.
        codes: Audit of the codes.
        leak: The search through everything that the service kept.
        report: Report, as it was written.
        seconds: The whole of it.
    """

    plan: DemoPlan
    rows: tuple[UtilityRow, ...]
    codes: CodeAudit
    leak: LeakCheck
    report: Report
    seconds: float

    @property
    def audit(self) -> AuditReport:
        """The attacks on the privatized training file."""
        return self.report.audit

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "plan": asdict(self.plan),
            "codes": code_audit_to_json(self.codes),
            "leak_check": asdict(self.leak),
            "seconds": self.seconds,
            "report": report_to_json(self.report),
        }

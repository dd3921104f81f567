"""Content of a report, as values: the page and the JSON say the same.

Nothing in it is private unless it was put in: `examples` hold text, and are shown only because somebody passed them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapt.audit.attributes import AttributeResult
from rapt.audit.audit import AuditReport
from rapt.audit.formal import FormalSide
from rapt.audit.intervals import Share
from rapt.audit.judge.labelled_entities import MissedKind
from rapt.audit.known_plaintext import KnownPlaintext
from rapt.drawing import Figure


@dataclass(frozen=True, kw_only=True)
class UtilityRow:
    """The accuracy of one way to tune.

    Attributes:
        name: Name for people.
        accuracy: Share of right answers with its interval; its `n` are the queries.
        seeds: Seeds of the training runs behind it.
        note: Note that a reader needs to compare it; may be empty.
    """

    name: str
    accuracy: Share
    seeds: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Utility:
    """Utility of the privatized text.

    Attributes:
        task: Task and data of the prediction, in one sentence.
        rows: The ways to tune that are compared, on the same queries.
        chance: Share of right answers of always naming the most frequent label; None when not known.
    """

    task: str
    rows: tuple[UtilityRow, ...]
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text that its owner says may be shown, and its privatized form."""

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of a list of facts."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on one page.

    Attributes:
        title: Title for people.
        created: Date, as it is to be printed.
        created_by: Program and version.
        audit: Results of the attacks.
        statement: Text of the privacy statement; empty when it was not made.
        commands: Lines that make the numbers again.
        facts: Anything else a reader may ask: the model, seconds, memory.
        utility: Utility of the privatized text.
        figures: Such as the loss of training.
        examples: Texts before and after, only those that may be shown.
        attributes: Inference of the authors' attributes.
        formal: Knowledge about the setting without any attack; None when it was not made.
        known_plaintext: Findings from the plain tokens of the file; None without plain tokens.
        missed: Labelled entities that a policy's recognizers miss; empty where none were given.
    """

    title: str
    created: str
    created_by: str
    audit: AuditReport
    statement: str = ""
    commands: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    utility: Utility | None = None
    figures: tuple[Figure, ...] = ()
    examples: tuple[Example, ...] = ()
    attributes: tuple[AttributeResult, ...] = ()
    formal: FormalSide | None = None
    known_plaintext: KnownPlaintext | None = None
    missed: tuple[MissedKind, ...] = ()

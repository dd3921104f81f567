"""Results on disk: one JSON line a trained model or attacked setting, appended when it is done and never rewritten.

A line holds which evaluation records were answered rightly, and no text. Whoever may not see the labels may not see the
lines: a model that is right nearly always gives them away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final

from rapt.compare.plan import AttackCell, Cell
from rapt.errors import UsageError
from rapt.whole_files import open_alone

SCHEMA: Final = "rapt.comparison/1"
# Candidates that a text is recognized among.
LINKED: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """The result of one trained model.

    Attributes:
        setting: Digest of the plan and the texts; with the denoised backbone, if the arm needs it.
        arm: Name of the arm.
        eta: 1/distance; None on clear text.
        seed: Seed of privatization, initialization and order.
        privatizations: Privatizations of the evaluation text that it answered, N; at home, contributors.
        right: Number of times out of N that it was right, one number an evaluation record.
        seconds: Duration of tuning, beside whatever else the machine was doing, s.
        epsilon: ε of a whole text; None on tokens and at home.
        crowd: Number of training texts; 0 for all.
    """

    setting: str
    arm: str
    eta: float | None
    seed: int
    privatizations: int
    right: tuple[int, ...]
    seconds: float
    epsilon: float | None = None
    crowd: int = 0

    @property
    def cell(self) -> Cell:
        """The cell that this is the result of."""
        return Cell(arm=self.arm, eta=self.eta, seed=self.seed, epsilon=self.epsilon, crowd=self.crowd)


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """The strongest attack at one η, or at one ε of a whole text.

    Attributes:
        setting: Setting, as in `ModelRow`.
        eta: 1/distance; None for codes.
        attacks: Attacks that were asked for.
        attack_tokens: Approximate number of tokens that were asked for.
        strongest: The one that recovered most.
        recovered: Share of all tokens, with its 95 % interval; of codes, of the five tokens named of a text.
        low: Lower end of its interval.
        high: Upper end of its interval.
        tokens: Attacked; of codes, texts.
        unchanged: Share of the tokens that the mechanism left as they were, over the whole training file.
        epsilon: ε of a whole text; None for tokens.
        blind: Share that is named without the file; None where nobody told.
        linked: Share of texts that are recognized among so many candidates in clear; None where it was not asked.
        linked_low: Lower end of its interval.
        linked_high: Upper end of its interval.
        candidates: Candidates, the right one among them.
        bits: Bits that a release says about which of the candidates it is of; None where it was not asked.
        label_alone: Share that is named by the label alone, which travels beside a code; None for tokens.
        beyond: Share that a code adds to the better of `blind` and `label_alone`; None for tokens.
        beyond_low: Lower end of its 95 % interval.
        beyond_high: Upper end of its interval.
        policy: Whether the entity policy had rewritten the texts; shares are then of what it left of them.
    """

    setting: str
    eta: float | None
    attacks: tuple[str, ...]
    attack_tokens: int
    strongest: str
    recovered: float
    low: float
    high: float
    tokens: int
    unchanged: float
    epsilon: float | None = None
    blind: float | None = None
    linked: float | None = None
    linked_low: float | None = None
    linked_high: float | None = None
    candidates: int = 0
    bits: float | None = None
    label_alone: float | None = None
    beyond: float | None = None
    beyond_low: float | None = None
    beyond_high: float | None = None
    policy: bool = False

    @property
    def cell(self) -> AttackCell:
        """The cell that this is the result of."""
        return AttackCell(
            eta=self.eta,
            attacks=self.attacks,
            tokens=self.attack_tokens,
            epsilon=self.epsilon,
            policy=self.policy,
        )


Row = ModelRow | AttackRow
_KINDS: Final = {"model": ModelRow, "attack": AttackRow}


class ResultsFile:
    """The lines of one comparison, open for appending by this process alone."""

    def __init__(self, stream: IO[bytes], *, settings: Collection[str]) -> None:
        """Read what is there; a last line that a kill cut short is dropped."""
        self._stream = stream
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        stream.truncate(whole)
        stream.seek(whole)
        self.rows: list[Row] = [read_row(line) for line in content[:whole].splitlines()]
        if any(row.setting not in settings for row in self.rows):
            raise UsageError(
                "results of one file must be of one setting and the same texts; name another folder as `out`, "
                "or give the options that this one was begun with"
            )

    def add(self, row: Row) -> None:
        """Append a line, on the disk before this returns."""
        kind = next(name for name, known in _KINDS.items() if isinstance(row, known))
        line = json.dumps({"schema": SCHEMA, "kind": kind, **asdict(row)}, allow_nan=False)
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.rows.append(row)


@contextmanager
def open_results(path: Path, *, settings: Collection[str]) -> Iterator[ResultsFile]:
    """The results of a comparison, made if they are not there.

    Raises:
        UsageError: They are of another plan or other texts, or not results.
        CorpusError: Another process writes them.
    """
    with open_alone(path) as stream:
        yield ResultsFile(stream, settings=settings)


def read_row(line: bytes) -> Row:
    """One result, as it was appended.

    Raises:
        UsageError: It is none.
    """
    try:
        value: dict[str, Any] = json.loads(line)
        if value["schema"] != SCHEMA:
            raise ValueError
        kind = _KINDS[value["kind"]]
        # Lines from before there were codes lack what has a default.
        known = {item.name: value[item.name] for item in fields(kind) if item.default is MISSING or item.name in value}
        for name in ("right", "attacks"):
            if name in known:
                known[name] = tuple(known[name])
        row: Row = kind(**known)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"results must be lines of schema {SCHEMA!r}; name another folder as `out`") from None
    return row

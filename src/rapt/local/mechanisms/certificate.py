"""How large beta of an exponential mechanism may be, computed once for a vocabulary and kept in a file.

The search takes minutes on a vocabulary of 30,000, so its result is kept in the user's cache folder, under a name made
from all that it depends on. A copy can be saved beside a bundle for readers (`rapt vocabulary certify`). It is never
taken from there: a bundle may come from a service, and a wrong certificate would weaken the guarantee.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.mechanisms.scores import Scores
from rapt.local.mechanisms.slope import Slope, largest_slopes
from rapt.this_machine import cache_folder
from rapt.version import __version__
from rapt.whole_files import write_whole
from rapt.wire.strict_json import exact_fields, field, parse_object

SCHEMA: Final = "rapt.slope/1"
# beta is searched among the thousandths of eta: finer steps change nothing that can be seen.
_STEPS: Final = 1000


class Subject(NamedTuple):
    """All that the largest beta depends on: table, metric and prior by name, and the target."""

    vocabulary_hash: str
    metric: str
    prior: str
    eta: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """With scores of this beta, the largest slope over all pairs of inputs and all outputs is at most eta.

    Attributes:
        vocabulary_hash: Of the table.
        metric: Name and parameters of the metric.
        prior: Hash of the output prior, or "uniform".
        eta: Target.
        beta: Largest thousandth of eta whose slope is at most eta.
        slope: Its largest slope, rounded up.
        token: Row x of the pair that has it.
        other: Row x'.
        method: How it was computed.
        created_by: Program and version.
    """

    vocabulary_hash: str
    metric: str
    prior: str
    eta: float
    beta: float
    slope: float
    token: int
    other: int
    method: str
    created_by: str

    @property
    def subject(self) -> Subject:
        """What it is for."""
        return Subject(self.vocabulary_hash, self.metric, self.prior, self.eta)


METHOD: Final = "all pairs of rows and all eligible outputs, float64, rounded up"


def certify(
    make_scores: Callable[[float], Scores], *, subject: Subject, on_progress: Callable[[str], None] | None = None
) -> Certificate:
    """The certificate for this target: from the cache folder, or else computed and kept there.

    Args:
        make_scores: The scores with a given beta, on the table, metric and prior of the subject.
        subject: What they are, and the largest slope allowed.
        on_progress: Called with what is being done, when it has to be computed.
    """
    path = cache_folder() / _file_name(subject)
    found = _read(path)
    if found is None or found.subject != subject:
        beta, slope = largest_beta(make_scores, eta=subject.eta, on_progress=on_progress)
        found = Certificate(
            vocabulary_hash=subject.vocabulary_hash,
            metric=subject.metric,
            prior=subject.prior,
            eta=subject.eta,
            beta=beta,
            slope=slope.value,
            token=slope.token,
            other=slope.other,
            method=METHOD,
            created_by=f"rapt {__version__}",
        )
        _write(found, path)
    return found


def largest_beta(
    make_scores: Callable[[float], Scores], *, eta: float, on_progress: Callable[[str], None] | None = None
) -> tuple[float, Slope]:
    """The largest thousandth of eta whose slope is at most eta, and that slope.

    Slopes are computed at a few values at once, because distances are much of the work: first far apart, then around
    where they should cross eta.
    """
    slopes: dict[int, Slope] = {}
    low, high = _STEPS // 2, _STEPS + 1  # high is not allowed: a slope is never below beta, and rounded up
    points = [low, *(low + _STEPS // 10 * i for i in range(1, 5))]
    while points:
        if on_progress is not None:
            on_progress(f"computing the largest slope for {len(points)} values of beta")
        found = largest_slopes([make_scores(eta * point / _STEPS) for point in points])
        slopes |= dict(zip(points, found, strict=True))
        low = max((point for point, slope in slopes.items() if slope.value <= eta), default=low)
        high = min((point for point, slope in slopes.items() if slope.value > eta and point > low), default=high)
        points = _between(low, high, slopes, eta=eta)
    # eta / 2 is proved for every table; what was computed there may exceed eta by the allowance for rounding.
    return eta * low / _STEPS, replace(slopes[low], value=min(slopes[low].value, eta))


def _between(low: int, high: int, slopes: dict[int, Slope], *, eta: float) -> list[int]:
    """Up to four points strictly inside the bracket, around where the slope should cross eta."""
    crossing = (low + high) // 2
    if high in slopes:
        # The slope is smooth in beta: the parabola through the three points nearest to eta, as beta of slope.
        near = sorted(slopes, key=lambda point: abs(slopes[point].value - eta))[:3]
        excess = [slopes[point].value - eta for point in near]
        if len(set(excess)) == len(near):
            crossing = int(np.polyfit(excess, near, len(near) - 1)[-1])
    crossing = min(max(crossing, low + 1), high - 1)
    return [point for point in range(crossing - 1, crossing + 3) if low < point < high]


def save_beside(certificate: Certificate, folder: Path) -> Path:
    """Write a copy into a bundle's folder, for readers; returns its path.

    Raises:
        CorpusError: The folder cannot be written to.
    """
    path = folder / _file_name(certificate.subject)
    _write(certificate, path)
    if _read(path) != certificate:
        raise CorpusError(
            "a certificate must be saved in a folder that can be written to; free space, or copy the bundle"
        )
    return path


def _file_name(subject: Subject) -> str:
    return f"slope-{hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Certificate | None:
    """The certificate in a file, None when there is none of this version, whole and sound."""
    what = "a certificate"
    names = {"schema", *Certificate.__dataclass_fields__}
    try:
        value = parse_object(path.read_bytes(), what=what)
        exact_fields(value, required=names, optional=set(), what=what)
        kinds: dict[str, type[Any]] = {"eta": float, "beta": float, "slope": float, "token": int, "other": int}
        fields = {name: field(value, name, kinds.get(name, str), what=what) for name in names - {"schema"}}
    except (OSError, WireError):
        return None
    if value["schema"] != SCHEMA or not 0 < fields["beta"] <= fields["slope"] <= fields["eta"]:
        return None
    return Certificate(**fields)


def _write(certificate: Certificate, path: Path) -> None:
    """Write it whole or not at all; a folder that cannot be written to costs a repetition, not the result."""
    with suppress(OSError, UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"schema": SCHEMA, **asdict(certificate)}, indent=1) + "\n")

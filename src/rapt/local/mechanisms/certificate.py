"""How large beta of an exponential mechanism may be, computed once for a vocabulary and kept in a file.

The search takes minutes on a vocabulary of 30,000, so its result is kept in the user's cache folder, under a name made
from all that it depends on. A copy can be saved beside a bundle for readers (`rapt vocabulary certify`). It is never
taken from there: a bundle may come from a service, and a wrong certificate would weaken the guarantee.

*The search.* The largest slope is taken over all pairs of inputs and all outputs of a vocabulary. 2 * beta bounds the
slope for every table (`Scores`). On a given one it is smaller, because the worst case of the scores and the worst case
of the normalizers do not meet, so a larger beta has the same guarantee.

For inputs x, x' and D = d(x, x'), the slope is sup_y [s(x, y) - s(x', y) + log Z(x') - log Z(x)] / D. The prior
cancels in the scores, so sup_y [s(x, y) - s(x', y)] = beta * sup_y [min(d(x', y), r) - min(d(x, y), r)].

- x is eligible: the supremum is beta * min(D, r), reached at y = x, where d(x, y) = 0 and d(x', y) = D. Nothing is
  more, by the triangle inequality. So all that is needed is Z of each input and one pass over pairs.
- x is not eligible: the same is an upper bound, and so is beta * (max_y d(x', y) - min_y d(x, y)). Where the lower of
  the two exceeds the largest slope found so far, the supremum is taken over all y. That is rare: a special token is far
  from every output.

Everything is in float64: slopes are right to about 1e-9 of their size, which `ROUNDING` covers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.mechanisms.metric import Scores
from rapt.this_machine import find_cache_folder
from rapt.version import __version__
from rapt.whole_files import write_whole
from rapt.wire.strict_json import check_fields, parse_object, read_field

# Relative allowance for rounding: a slope is stated so much larger than it was computed.
ROUNDING: Final = 1e-7
_ROWS: Final = 256

Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The largest slope, and a pair of inputs that has it.

    Attributes:
        value: sup of (log P(y|x) - log P(y|x')) / d(x, x'), 1/distance, rounded up.
        token: Token x.
        other: Token x'.
    """

    value: float
    token: int
    other: int


def find_largest_slopes(family: Sequence[Scores], *, on_progress: Progress | None = None) -> list[Slope]:
    """The largest slope of each of several mechanisms.

    Args:
        family: Mechanisms with one metric, outputs and prior, and different beta: distances are computed once.
        on_progress: Called with the share done.
    """
    search = _Search(family)
    inputs, eligible = np.arange(len(family[0].metric.embeddings)), family[0].eligible
    others = np.setdiff1d(inputs, eligible)
    steps = [
        *((search.normalize, part) for part in _split_parts(inputs, _ROWS)),
        *((search.from_eligible, part) for part in _split_parts(eligible, _ROWS)),
        *((search.from_others, part) for part in _split_parts(others, _ROWS)),
    ]
    for done, (step, part) in enumerate(steps, 1):
        step(part)
        if on_progress is not None:
            on_progress(done / len(steps))
    return search.best


class _Search:
    """Normalizers first, then the pairs that begin with an eligible token, then the others: each needs those before."""

    def __init__(self, family: Sequence[Scores]) -> None:
        self.family, self.metric = family, family[0].metric
        self.inputs = np.arange(len(self.metric.embeddings))
        self.log_normalizer = np.empty((len(family), len(self.inputs)))
        self.nearest = np.full(len(self.inputs), np.inf)  # least and largest distance of each input to an output
        self.farthest = np.zeros(len(self.inputs))
        self.best = [Slope(value=scores.beta, token=0, other=0) for scores in family]

    def normalize(self, tokens: NDArray[np.int64]) -> None:
        """The log of Z of some inputs."""
        normalizer = np.zeros((len(self.family), len(tokens)))
        for columns, distances in self.metric.tiles(tokens, self.family[0].eligible):
            self.nearest[tokens] = np.minimum(self.nearest[tokens], distances.min(axis=1))
            self.farthest[tokens] = np.maximum(self.farthest[tokens], distances.max(axis=1))
            for i, scores in enumerate(self.family):
                weights = scores.from_distances(distances.copy(), columns)
                normalizer[i] += np.exp(weights, out=weights).sum(axis=1)
        self.log_normalizer[:, tokens] = np.log(normalizer)

    def from_eligible(self, tokens: NDArray[np.int64]) -> None:
        """Pairs whose first token can be an output."""
        for places, distances in self.metric.tiles(tokens, self.inputs):
            columns, inverse = self.inputs[places], _invert(distances)
            for i in range(len(self.family)):
                bound = self._compute_bound(i, tokens, columns, distances, inverse)
                row, column = np.unravel_index(bound.argmax(), bound.shape)
                self._offer(i, float(bound[row, column]), tokens[row], columns[column])

    def from_others(self, tokens: NDArray[np.int64]) -> None:
        """Pairs whose first token cannot be an output: bounded, and where that is not enough, computed."""
        for part, distances in self.metric.tiles(tokens, self.inputs):
            columns, inverse = self.inputs[part], _invert(distances)
            for i, scores in enumerate(self.family):
                farthest = np.minimum(self.farthest[columns], scores.effective_reach)
                room = farthest - np.minimum(self.nearest[tokens], scores.effective_reach)[:, None]
                bound = self._compute_bound(i, tokens, columns, np.minimum(distances, room), inverse)
                rows, places = np.nonzero(bound > self.best[i].value)
                order = np.argsort(-bound[rows, places], kind="stable")
                for some in _split_parts(order, _ROWS):
                    left, right = rows[some], places[some]
                    if bound[left[0], right[0]] <= self.best[i].value:
                        break
                    self._compute(i, tokens[left], columns[right], distances[left, right])

    def _compute_bound(
        self,
        i: int,
        tokens: NDArray[np.int64],
        columns: NDArray[np.int64],
        gain: NDArray[np.float64],
        inverse: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """[beta * min(gain, r) + log Z(x') - log Z(x)] / D of all pairs; 0 where D is 0."""
        scores, log_normalizer = self.family[i], self.log_normalizer[i]
        found: NDArray[np.float64] = log_normalizer[columns] - log_normalizer[tokens, None]
        found += scores.beta * np.minimum(gain, scores.effective_reach)
        found *= inverse
        return found

    def _compute(
        self, i: int, tokens: NDArray[np.int64], others: NDArray[np.int64], distances: NDArray[np.float64]
    ) -> None:
        scores, log_normalizer = self.family[i], self.log_normalizer[i]
        gain = np.minimum(self.metric.between(others, scores.eligible), scores.effective_reach)
        gain -= np.minimum(self.metric.between(tokens, scores.eligible), scores.effective_reach)
        slopes = (scores.beta * gain.max(axis=1) + log_normalizer[others] - log_normalizer[tokens]) / distances
        place = int(slopes.argmax())
        self._offer(i, float(slopes[place]), tokens[place], others[place])

    def _offer(self, i: int, value: float, token: np.int64, other: np.int64) -> None:
        if value * (1 + ROUNDING) > self.best[i].value:
            self.best[i] = Slope(value=value * (1 + ROUNDING), token=int(token), other=int(other))


def _invert(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / D, and 0 where D is 0."""
    same = distances == 0
    inverse: NDArray[np.float64] = 1 / np.where(same, 1.0, distances)
    inverse[same] = 0.0
    return inverse


def _split_parts(values: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


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
        vocabulary_hash: Hash of the vocabulary.
        metric: Name and parameters of the metric.
        prior: Hash of the output prior, or "uniform".
        eta: Slope that is allowed.
        beta: Largest thousandth of eta whose slope is at most eta.
        slope: Largest slope at this beta, rounded up.
        token: Row x of the pair that has the largest slope.
        other: Row x'.
        method: Words for the way in which the slope was computed.
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
        """Subject of the certificate."""
        return Subject(self.vocabulary_hash, self.metric, self.prior, self.eta)


METHOD: Final = "all pairs of rows and all eligible outputs, float64, rounded up"


def certify(
    make_scores: Callable[[float], Scores], *, subject: Subject, on_progress: Callable[[str], None] | None = None
) -> Certificate:
    """The certificate for this target: from the cache folder, or else computed and kept there.

    Args:
        make_scores: The scores with a given beta, on the table, metric and prior of the subject.
        subject: Description of the pairs, and the largest slope allowed.
        on_progress: Called with what is being done, when it has to be computed.
    """
    path = find_cache_folder() / _make_file_name(subject)
    found = _read(path)
    if found is None or found.subject != subject:
        beta, slope = find_largest_beta(make_scores, eta=subject.eta, on_progress=on_progress)
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


def find_largest_beta(
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
        found = find_largest_slopes([make_scores(eta * point / _STEPS) for point in points])
        slopes |= dict(zip(points, found, strict=True))
        low = max((point for point, slope in slopes.items() if slope.value <= eta), default=low)
        high = min((point for point, slope in slopes.items() if slope.value > eta and point > low), default=high)
        points = _choose_between(low, high, slopes, eta=eta)
    # eta / 2 is proved for every table; what was computed there may exceed eta by the allowance for rounding.
    return eta * low / _STEPS, replace(slopes[low], value=min(slopes[low].value, eta))


def _choose_between(low: int, high: int, slopes: dict[int, Slope], *, eta: float) -> list[int]:
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
    path = folder / _make_file_name(certificate.subject)
    _write(certificate, path)
    if _read(path) != certificate:
        raise CorpusError(
            "a certificate must be saved in a folder that can be written to; free space, or copy the bundle"
        )
    return path


def _make_file_name(subject: Subject) -> str:
    return f"slope-{hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Certificate | None:
    """The certificate in a file, None when there is none of this version, whole and sound."""
    what = "a certificate"
    names = {"schema", *Certificate.__dataclass_fields__}
    try:
        value = parse_object(path.read_bytes(), what=what)
        check_fields(value, required=names, optional=set(), what=what)
        kinds: dict[str, type[Any]] = {"eta": float, "beta": float, "slope": float, "token": int, "other": int}
        fields = {name: read_field(value, name, kinds.get(name, str), what=what) for name in names - {"schema"}}
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

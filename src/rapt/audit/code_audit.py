"""The audit of whole texts as codes: what an attacker learns from one codeword a text, beside the bound on it.

The channel has two probabilities, so the best attack is known and not approximated: of n candidate texts, those for
which the codeword is a preferred one are the likeliest, all alike. Everything else that an attacker may want, words,
length, an attribute, is at most as certain as that; readers that learn from other texts show how much of it there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.intervals import Share, independent_share
from rapt.errors import AuditError, name_record
from rapt.local.codes.code_privatizer import Encoder, check_encoder
from rapt.local.codes.subset import SubsetMechanism, remake_subset
from rapt.local.codes.text_statement import bound_guess
from rapt.local.corpus import read_corpus
from rapt.narration import SILENT, Narrator
from rapt.wire.code_bundle import CodeBundle, project_states
from rapt.wire.privatized_file import PrivatizedFile

# Candidates that a text is named among, as far as there are so many.
CANDIDATES: Final = (2, 10, 100, 1000)
# A sound program is accused once in so many audits.
ALPHA: Final = 1e-6
_BINS: Final = 16
_WORDS: Final = 5  # that a reader names of each text
_USUAL_WORDS: Final = 500  # that it chooses among
_LEAST_RECORDS: Final = 20
_RIDGE: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How often the right text is named among candidates, by the best attack that there is.

    Attributes:
        candidates: n, the right text among them.
        first: Share of the texts that are named.
        chance: Share without the file, 1 / n.
        bound: Share that no attack exceeds, e^ε / (e^ε + n - 1).
    """

    candidates: int
    first: Share
    chance: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well a reader that learned from half of the texts does on the other half.

    Attributes:
        what: Name of the inference.
        first: Share of right answers.
        blind: Share without the file.
    """

    what: str
    first: Share
    blind: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the codewords of the file are those that its mechanism draws.

    Attributes:
        hits: Share of codewords that are preferred ones of their text.
        stated: Probability that the mechanism states for it.
        p_value: Probability of hits, or of places among the preferred and the other codewords, as far off as these,
            if the program is sound; the smallest of the three, corrected for three.
        spent: Lower bound on the ε that was spent, of all codes of a text, at confidence 1 - α.
        largest: Largest such bound that as many texts could have shown.
    """

    hits: float
    stated: float
    p_value: float
    spent: float
    largest: float

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the program."""
        return self.p_value >= ALPHA


@dataclass(frozen=True, kw_only=True)
class CodeAudit:
    """Findings of the audit of a file of codes.

    Attributes:
        epsilon: ε of a whole text.
        records: Number of texts.
        naming: The best attack, for growing numbers of candidates.
        readings: Readers of words, length and attributes.
        fit: Whether the file is what its mechanism draws.
    """

    epsilon: float
    records: int
    naming: tuple[Naming, ...]
    readings: tuple[Reading, ...]
    fit: Fit

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for a user, in sentences."""
        found = [
            f"texts are named among {item.candidates:,} more often than epsilon={self.epsilon:g} allows"
            for item in self.naming
            if item.first.low > item.bound
        ]
        if not self.fit.sound:
            found.append("the codewords are not those of the stated mechanism: do not use this program")
        if self.fit.spent > self.epsilon:
            found.append(f"more was spent than epsilon={self.epsilon:g}")
        return tuple(found)


@dataclass(frozen=True, kw_only=True, repr=False)
class Originals:
    """The texts that a file of codes was made from, for the judge.

    Attributes:
        texts: Texts in clear, in the order of the records.
        attributes: Columns to be inferred, by name.
    """

    texts: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_originals(path: Path, *, text_column: str, attributes: Sequence[str] = ()) -> Originals:
    """Read the texts that a file of codes was made from. Raises `CorpusError`."""
    texts = tuple(record.text for record in read_corpus(path, text_column=text_column, label_column=None))
    columns = {
        name: tuple(str(record.label) for record in read_corpus(path, text_column=text_column, label_column=name))
        for name in attributes
    }
    return Originals(texts=texts, attributes=columns)


def audit_codes(
    file: PrivatizedFile,
    originals: Originals,
    *,
    bundle: CodeBundle,
    encoder: Encoder,
    seed: int = 0,
    narrator: Narrator = SILENT,
) -> CodeAudit:
    """Attack a file of codes.

    Args:
        file: Codes of single texts.
        originals: The texts that it was made from.
        bundle: Code bundle that the file names.
        encoder: Encoder of that bundle.
        seed: Seed of candidates and halves.
        narrator: Receiver of progress.

    Raises:
        AuditError: Texts and file do not belong together, or there are too few.
        VocabularyError: The encoder is another.
        MechanismError: The file was made over another codebook.
        CorpusError: A text cannot be read by the encoder.
    """
    manifest = file.manifest
    if manifest.pairs:
        raise AuditError("an audit of codes takes files of single texts, got pairs; privatize each text by itself")
    if manifest.vocabulary_hash != bundle.hash:
        raise AuditError("the code bundle must be the one that the file was made with, got another; give that one")
    if len(file.records) < _LEAST_RECORDS:
        raise AuditError(
            f"an audit of codes must have at least {_LEAST_RECORDS} texts, got a file of {len(file.records)}; "
            "audit a larger one"
        )
    if len(originals.texts) != len(file.records):
        raise AuditError(
            f"an audit of codes must have the {len(file.records)} texts of the file, got {len(originals.texts)}; "
            "give the corpus it was made from"
        )
    if len({tuple(record.token_ids) for record in file.records}) == 1:
        raise AuditError(f"{name_record(0)} and all others must not be of one code; nothing was drawn")
    check_encoder(encoder, bundle=bundle)
    mechanism = remake_subset(manifest.mechanism, bundle=bundle)
    with narrator.meter("encoding", total=len(originals.texts), unit="texts") as show_progress:
        codes = project_states(encoder.encode(originals.texts), bundle)
        show_progress(len(originals.texts))
    released = np.array([record.token_ids for record in file.records], dtype=np.int64)  # (n, r)
    rng = np.random.default_rng(seed)
    contents = encoder.vocabulary.encode(originals.texts)
    readings = [_read_words(mechanism, released, contents, rng=rng)]
    if (lengths := _compare_lengths(mechanism, released, contents, rng)) is not None:
        readings.append(lengths)
    for name, values in originals.attributes.items():
        readings.append(_infer(mechanism, released, values, name=name, rng=rng))
    return CodeAudit(
        epsilon=mechanism.epsilon,
        records=len(released),
        naming=_name_texts(mechanism, codes, released, rng=rng),
        readings=tuple(readings),
        fit=_compare_with_channel(mechanism, codes, released),
    )


def _name_texts(
    mechanism: SubsetMechanism, codes: NDArray[np.float64], released: NDArray[np.int64], *, rng: np.random.Generator
) -> tuple[Naming, ...]:
    """The exact Bayes attack: among candidates as likely as each other, one of those with the largest P(y|x)."""
    # hits[i, j]: for how many of its codes the codeword of record i is a preferred one of text j.
    hits = np.zeros((len(released), len(codes)), dtype=np.int16)
    for text, row in enumerate(mechanism.log_probabilities(codes)):
        likely = row.max(axis=1, keepdims=True)
        preferred = row >= likely
        for run in range(preferred.shape[0]):
            hits[:, text] += preferred[run, released[:, run]]
    found = []
    everyone = len(codes)
    for n in dict.fromkeys(min(n, everyone) for n in (*CANDIDATES, everyone)):
        named = np.empty(len(released))
        for record in range(len(released)):
            others = rng.choice(everyone - 1, size=n - 1, replace=False)
            others += others >= record
            best = hits[record, others].max(initial=-1)
            own = hits[record, record]
            named[record] = 0.0 if own < best else 1 / (1 + np.count_nonzero(hits[record, others] == own))
        # Ties are broken by chance: a share of a right answer each.
        right = rng.random(len(named)) < named
        found.append(
            Naming(
                candidates=n,
                first=independent_share(right),
                chance=1 / n,
                bound=bound_guess(mechanism.epsilon, among=n),
            )
        )
    return tuple(found)


def _compare_with_channel(mechanism: SubsetMechanism, codes: NDArray[np.float64], released: NDArray[np.int64]) -> Fit:
    """Exact binomial test of the hits, χ² of the places within both sides, and what ε the hits show."""
    hit = np.empty(released.shape, dtype=bool)
    places = np.empty(released.shape)
    for text, row in enumerate(mechanism.log_probabilities(codes)):
        preferred = row >= row.max(axis=1, keepdims=True)
        for run in range(preferred.shape[0]):
            word = released[text, run]
            side = preferred[run] if preferred[run, word] else ~preferred[run]
            hit[text, run] = preferred[run, word]
            places[text, run] = np.count_nonzero(side[:word]) / np.count_nonzero(side)
    tried, size, m = hit.size, mechanism.bundle.size, mechanism.preferred
    count = int(hit.sum())
    p_hits = float(stats.binomtest(count, tried, mechanism.hit_probability).pvalue)
    p_places = 1.0
    for chosen, share in ((places[hit], m), (places[~hit], size - m)):
        bins = min(_BINS, share, len(chosen) // 5)
        if bins > 1:
            edges = np.ceil(np.linspace(0, share, bins + 1)) / share
            counted = np.histogram(chosen, bins=edges)[0]
            p_places = min(p_places, float(stats.chisquare(counted, np.diff(edges) * len(chosen)).pvalue))
    return Fit(
        hits=count / tried,
        stated=mechanism.hit_probability,
        p_value=min(1.0, 3 * min(p_hits, p_places)),
        spent=_show_epsilon(count, tried, mechanism),
        largest=_show_epsilon(tried, tried, mechanism),
    )


def _show_epsilon(hits: int, tried: int, mechanism: SubsetMechanism) -> float:
    """Lower confidence bound on ε from hits: that of the odds of a preferred codeword, of all codes of a text."""
    low = float(stats.beta.ppf(ALPHA, hits, tried - hits + 1)) if hits else 0.0
    m, others = mechanism.preferred, mechanism.bundle.size - mechanism.preferred
    if low <= m / (m + others):
        return 0.0
    return mechanism.bundle.codes * math.log(low / (1 - low) * others / m) if low < 1 else math.inf


def _states(mechanism: SubsetMechanism, released: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a reader's view of each record: its codewords side by side and a constant, (n, k + 1)."""
    books = mechanism.bundle.codewords.astype(np.float64)
    words = np.concatenate([book[released[:, run]] for run, book in enumerate(books)], axis=1)
    return np.concatenate([words, np.ones((len(words), 1))], axis=1)


def _fit_ridge(states: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = _RIDGE * np.eye(states.shape[1])
    scale[-1, -1] = 1e-9
    return np.asarray(np.linalg.solve(states.T @ states + scale, states.T @ wanted))


def _halves(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = rng.permutation(n)
    return order[: n // 2], order[n // 2 :]


def _read_words(
    mechanism: SubsetMechanism,
    released: NDArray[np.int64],
    contents: Sequence[Sequence[int]],
    *,
    rng: np.random.Generator,
) -> Reading:
    """Name the tokens that are likeliest to be in each text, by ridge regression on the codes of the other half."""
    learn, judge = _halves(len(released), rng)
    sets = [set(content) for content in contents]
    counted: dict[int, int] = {}
    for place in learn:
        for token in sets[place]:
            counted[token] = counted.get(token, 0) + 1
    usual = sorted(counted, key=lambda token: (-counted[token], token))[:_USUAL_WORDS]
    occurs = np.array([[token in content for token in usual] for content in sets], dtype=np.float64)
    states = _states(mechanism, released)
    scores = states[judge] @ _fit_ridge(states[learn], occurs[learn])
    chosen = np.argsort(-scores, axis=1)[:, :_WORDS]
    right = np.take_along_axis(occurs[judge], chosen, axis=1)
    blind = occurs[judge][:, np.argsort(-occurs[learn].mean(axis=0), kind="stable")[:_WORDS]]
    return Reading(what=f"{_WORDS} tokens of a text", first=_mean(right.mean(axis=1)), blind=float(blind.mean()))


def _compare_lengths(
    mechanism: SubsetMechanism,
    released: NDArray[np.int64],
    contents: Sequence[Sequence[int]],
    rng: np.random.Generator,
) -> Reading | None:
    """Say which of two texts is the longer one, by ridge regression on the codes of the other half; None if none is."""
    learn, judge = _halves(len(released), rng)
    lengths = np.log([max(1, len(content)) for content in contents])
    states = _states(mechanism, released)
    scores = states[judge] @ _fit_ridge(states[learn], lengths[learn, None])[:, 0]
    cut = len(judge) // 2
    first, second = judge[:cut], judge[cut : 2 * cut]
    apart = lengths[first] != lengths[second]
    if not apart.any():
        return None
    right = (scores[:cut] > scores[cut : 2 * cut]) == (lengths[first] > lengths[second])
    return Reading(what="which of two texts is longer", first=independent_share(right[apart]), blind=0.5)


def _infer(
    mechanism: SubsetMechanism,
    released: NDArray[np.int64],
    values: Sequence[str],
    *,
    name: str,
    rng: np.random.Generator,
) -> Reading:
    """Infer a column of each text, by ridge regression on the codes of the other half."""
    learn, judge = _halves(len(released), rng)
    kinds, places = np.unique(np.array(values), return_inverse=True)
    states = _states(mechanism, released)
    wanted = np.eye(len(kinds))[places]
    guess = (states[judge] @ _fit_ridge(states[learn], wanted[learn])).argmax(axis=1)
    usual = np.bincount(places[learn], minlength=len(kinds)).argmax()
    return Reading(
        what=f"column {name}",
        first=independent_share(guess == places[judge]),
        blind=float((places[judge] == usual).mean()),
    )


def _mean(values: NDArray[np.float64]) -> Share:
    """The mean of one share a text, with Student's interval."""
    n = len(values)
    value = float(values.mean())
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Share(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n, clusters=n)


def code_audit_to_json(found: CodeAudit) -> dict[str, Any]:
    """The audit as plain JSON values; it holds no text."""

    def share(item: Share) -> dict[str, Any]:
        return {"value": item.value, "low": item.low, "high": item.high, "n": item.n}

    return {
        "schema": "rapt.code-audit/1",
        "epsilon": found.epsilon,
        "records": found.records,
        "naming": [
            {"candidates": item.candidates, **share(item.first), "chance": item.chance, "bound": item.bound}
            for item in found.naming
        ],
        "readings": [{"what": item.what, **share(item.first), "blind": item.blind} for item in found.readings],
        "fit": {**vars(found.fit), "sound": found.fit.sound},
        "warnings": list(found.warnings),
    }

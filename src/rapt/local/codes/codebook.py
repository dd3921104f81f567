"""Making the code of a public encoder from public text: centre, directions and codewords. No private text comes near.

*Centre and directions.* The centre is the mean state. The first directions are those that tell the names of labels
apart, where names are given: a label's name is public, and the encoder reads it as it reads a text. The next are those
that tell the labels of public tasks apart: discriminants of each task, put together by how far each moves a state. The
others are the principal directions of what is left. All are uncorrelated over the public text and scaled to variance 1,
so that no coordinate of a code is lost in the noise of another.

*Codewords.* Points of the sphere, the same for everybody: coordinates are sums of twelve whole numbers of SHAKE-256,
divided by the length. Sum, root and quotient have one correctly rounded result each, so every machine makes the same
float32 numbers.

*How many codewords.* The mean inner product of a code and its codeword hardly grows with N beyond a few times e^ε: at
ε = 8 and k = 8 it is 0.767, 0.785, 0.790, 0.791 with 256, 1,024, 4,096 and 16,384.

*Pairs.* How alike the two states of a pair are is one number, their cosine. The part of it where public pairs lie is
laid on a half circle, and the codewords are the middles of N equal pieces of that. All that is learned of a pair is
where on one line it lies, which a crowd knows at every ε.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import CorpusError, UsageError
from rapt.local.codes.code_privatizer import join_pair, split_pair
from rapt.local.codes.encoder import TextEncoder
from rapt.local.codes.subset import make_subset
from rapt.local.corpus import read_corpus
from rapt.narration import SILENT, Narrator
from rapt.wire.code_bundle import (
    MOST_DIMENSIONS,
    CodeBundle,
    check_codewords,
    compare_pairs,
    make_code_bundle,
    place_on_arc,
    project_states,
)
from rapt.wire.mechanism_setting import MOST_CODES, MOST_CODEWORDS, check_epsilon

DIMENSIONS: Final = 8
CODEWORDS: Final = 4096
CODEWORDS_OF_PAIRS: Final = 8
_LIKENESSES: Final = (0.1, 0.9)  # percentiles of public pairs whose likeness is at the ends of the half circle
MOST_TEXTS: Final = 20_000
LEAST_TEXTS: Final = 64
_CHUNK: Final = 256
_TERMS: Final = 12
_SEED: Final = "rapt codebook 1"
# Times the mean variance that is added to each direction of a task's covariance. With 0.03, 0.3 and 3 of tweets and
# reviews of goods, heads are right for 80, 83 and 85 of 100 sentences on films (ε = 1, k = 4): what is fitted closely
# to one kind of text is worth less for the next.
_RIDGE: Final = 3.0
_MOST_LABELS: Final = 100
_MEASURED: Final = 500
_LEAST_SPREAD: Final = 1e-3  # of a cosine


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicStates:
    """States of public texts, and of public tasks.

    Attributes:
        texts: States of texts whose labels are not used, (n, h), float32.
        tasks: States and labels of each task: (n, h) and (n,), whole numbers from 0.
        names: States of the names of labels that codes will be asked for, (C, h); None without names.
    """

    texts: NDArray[np.float32]
    tasks: tuple[tuple[NDArray[np.float32], NDArray[np.int64]], ...] = ()
    names: NDArray[np.float32] | None = None


def read_public_states(
    encoder: TextEncoder,
    texts: Iterable[Path],
    *,
    tasks: Iterable[Path] = (),
    names: Sequence[str] = (),
    dimensions: int = DIMENSIONS,
    text_column: str = "text",
    label_column: str = "label",
    narrator: Narrator = SILENT,
) -> PublicStates:
    """Read and encode public files, each as `read_corpus` reads it; at most `MOST_TEXTS` different texts of a kind.

    Everything is read, and refused, before anything is encoded, which takes long.

    Args:
        encoder: Encoder of the code.
        texts: Files of text; labels in them are not read.
        tasks: Files of text with labels, one task each.
        names: Names of labels, in words that the encoder knows; none, or two to `_MOST_LABELS` different ones.
        dimensions: k of the code that is to be made of the states.
        text_column: Column of the text in all of them.
        label_column: Column of the label in the tasks.
        narrator: Narrator that receives the progress.

    Raises:
        CorpusError: A file cannot be read, there are too few texts, or a task has fewer than two labels or too many.
        UsageError: The code has more dimensions than the encoder, or as many as there are texts; or there is one name
            of a label, too many, an empty one, or one twice.
    """
    _check_dimensions(dimensions, encoder.hidden_size)
    kinds = {name.strip() for name in names} - {""}
    if names and not 2 <= len(kinds) == len(names) <= _MOST_LABELS:
        raise UsageError(
            f"names of labels must be 2 to {_MOST_LABELS} different ones, got {len(names)}, {len(kinds)} different; "
            "name each label once"
        )
    plain = {text: "" for path in texts for text, _ in _read(path, text_column=text_column, label_column=None)}
    kept = _take(plain)
    if len(kept) < LEAST_TEXTS:
        raise CorpusError(
            f"a code needs at least {LEAST_TEXTS} different public texts, got {len(kept)}; add public text"
        )
    if len(kept) <= dimensions:
        raise UsageError(
            f"a code must have fewer dimensions than there are different public texts, got {dimensions} for "
            f"{len(kept)}; add public text, or ask for fewer dimensions"
        )
    chosen_of = []
    for path in tasks:
        labelled = dict(_read(path, text_column=text_column, label_column=label_column))
        chosen = _take(labelled)
        own = sorted({labelled[text] for text in chosen})
        if not 2 <= len(own) <= _MOST_LABELS or len(chosen) < LEAST_TEXTS:
            raise CorpusError(
                f"a public task must have {LEAST_TEXTS} different texts and 2 to {_MOST_LABELS} labels, got "
                f"{len(chosen)} and {len(own)}; leave it out, or name its column with `label_column`"
            )
        labels = np.array([own.index(labelled[text]) for text in chosen], dtype=np.int64)
        chosen_of.append((chosen, labels))
    found = [(_encode(encoder, chosen, "a public task", narrator), labels) for chosen, labels in chosen_of]
    return PublicStates(
        texts=_encode(encoder, kept, "public text", narrator),
        tasks=tuple(found),
        names=encoder.encode([name.strip() for name in names]) if names else None,
    )


def learn_directions(
    states: PublicStates, *, dimensions: int, discriminants: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Learn the centre, (h,), and the directions, (k, h), of a code: discriminants first, then principal directions.

    Args:
        states: States of public texts, tasks and names.
        dimensions: Number k of directions.
        discriminants: Most directions that the tasks get beside the names; None for a quarter of k, and one at least.

    Raises:
        UsageError: k is outside 1 to h, or the public texts vary in fewer than k directions.
    """
    texts = states.texts.astype(np.float64)
    width = texts.shape[1]
    _check_dimensions(dimensions, width)
    center = texts.mean(axis=0)
    covariance = np.cov(texts, rowvar=False, bias=True).reshape(width, width)
    most = max(1, dimensions // 4) if discriminants is None else discriminants
    found = np.empty((0, width)) if states.names is None else _tell_names_apart(states.names, covariance)[:dimensions]
    if states.tasks and len(found) < dimensions:
        others = _discriminate(states.tasks, covariance)
        if len(found):  # what names explain already is taken off, so that directions of both are uncorrelated
            others = _turn_to_principal(others - (others @ covariance @ found.T) @ found, covariance)
        found = np.concatenate([found, others[: min(most, dimensions - len(found))]])
    # What the discriminants explain of a state is taken off it; the rest is uncorrelated with them.
    explained = covariance @ found.T
    variances, axes = np.linalg.eigh(covariance - explained @ explained.T)
    needed = dimensions - len(found)
    variances, axes = variances[::-1][:needed], axes.T[::-1][:needed]
    if needed and not variances[-1] > 1e-9 * np.trace(covariance) / width:
        raise UsageError(
            f"public text must vary in as many directions as a code has dimensions, got {dimensions}; "
            "add public text, or ask for fewer dimensions"
        )
    principal = (axes - (axes @ explained) @ found) / np.sqrt(variances)[:, None]
    directions = np.concatenate([found, principal])
    # A direction and its opposite are both right: the largest number of each is positive, on every machine.
    directions *= np.sign(np.take_along_axis(directions, abs(directions).argmax(axis=1)[:, None], axis=1))
    return center.astype(np.float32), directions.astype(np.float32)


def _check_dimensions(dimensions: int, width: int) -> None:
    if not 1 <= dimensions <= width:
        raise UsageError(f"the dimensions of a code must be from 1 to {width}, those of its encoder, got {dimensions}")


def check_sizes(*, codes: int, codewords: int, dimensions: int, epsilons: Sequence[float] = ()) -> None:
    """Refuse sizes that no code of any encoder can have, and ε at which none can be measured, before the long work.

    Raises:
        MechanismError: An ε is outside its domain.
        UsageError: A size is outside its domain.
        VocabularyError: So many codewords of so few dimensions are not all different.
    """
    for epsilon in epsilons:
        check_epsilon(epsilon)
    _check_dimensions(dimensions, MOST_DIMENSIONS)
    check_codewords(draw_codewords(codes=codes, codewords=codewords, dimensions=dimensions))


def draw_codewords(*, codes: int, codewords: int, dimensions: int) -> NDArray[np.float32]:
    """Draw the codebooks that everybody draws for these sizes, (r, N, k / r), each row of length 1.

    Raises:
        UsageError: A size is outside its domain, or k is no multiple of r with two dimensions for each code.
    """
    if not (2 <= codewords <= MOST_CODEWORDS and 1 <= codes <= MOST_CODES):
        raise UsageError(
            f"a code must have 2 to {MOST_CODEWORDS} codewords and 1 to {MOST_CODES} codes a text, got {codewords} and "
            f"{codes}"
        )
    run = dimensions // codes
    if run < 2 or run * codes != dimensions:
        raise UsageError(
            f"each of the codes of a text must have the same number of dimensions, two at least, got {dimensions} for "
            f"{codes}"
        )
    books = []
    for number in range(codes):
        seed = f"{_SEED}: {number} of {codes}, {codewords} x {run}"
        raw = hashlib.shake_256(seed.encode()).digest(codewords * run * _TERMS * 2)
        numbers = np.frombuffer(raw, dtype="<u2").reshape(codewords, run, _TERMS).astype(np.int64)
        points = 2 * numbers.sum(axis=2) - _TERMS * 65_535
        books.append(points / np.sqrt((points**2).sum(axis=1, keepdims=True)))
    return np.array(books).astype(np.float32)


def make_codebook(
    encoder: TextEncoder,
    states: PublicStates,
    *,
    dimensions: int = DIMENSIONS,
    codewords: int = CODEWORDS,
    codes: int = 1,
    languages: Sequence[str] = (),
) -> CodeBundle:
    """Make the code of an encoder from the states of public text.

    Raises:
        UsageError: A size is outside its domain.
        VocabularyError: The states are not finite.
    """
    books = draw_codewords(codes=codes, codewords=codewords, dimensions=dimensions)
    center, directions = learn_directions(states, dimensions=dimensions)
    return make_code_bundle(
        model=encoder.model,
        encoder_hash=encoder.hash,
        center=center,
        directions=directions,
        codewords=books,
        max_tokens=encoder.max_tokens,
        languages=languages,
    )


def read_pair_states(
    encoder: TextEncoder,
    files: Iterable[Path],
    *,
    text_column: str = "text",
    second_column: str,
    narrator: Narrator = SILENT,
) -> PublicStates:
    """Read public pairs, at most `MOST_TEXTS` different ones, and return how alike the two texts of each are, (n, 1).

    Raises:
        CorpusError: A file cannot be read, or there are too few pairs.
        UsageError: Both columns are the same.
    """
    if second_column == text_column:
        raise UsageError("the two texts of a pair must stand in different columns; name each once")
    joined = {}
    for path in files:
        columns = (
            _read(path, text_column=name, label_column=None, blank=True) for name in (text_column, second_column)
        )
        for (first, _), (second, _) in zip(*columns, strict=True):
            if first.strip() and second.strip():
                joined[join_pair(first, second)] = ""
    kept = [split_pair(pair) for pair in _take(joined)]
    if len(kept) < LEAST_TEXTS:
        raise CorpusError(
            f"a code of pairs needs at least {LEAST_TEXTS} different public pairs, got {len(kept)}; add public pairs"
        )
    states = (_encode(encoder, half, "public pairs", narrator) for half in zip(*kept, strict=True))
    return PublicStates(texts=compare_pairs(*states))


def make_pair_codebook(
    encoder: TextEncoder, states: PublicStates, *, codewords: int = CODEWORDS_OF_PAIRS, languages: Sequence[str] = ()
) -> CodeBundle:
    """Make the code of pairs of an encoder from the states of public pairs, (n, 1).

    Raises:
        UsageError: Nearly all public pairs are equally alike.
        VocabularyError: There are fewer than two codewords, or too many.
    """
    low, high = np.quantile(states.texts.astype(np.float64), _LIKENESSES)
    if not high - low > _LEAST_SPREAD:
        raise UsageError("public pairs must differ in how alike their texts are; add pairs of both kinds")
    places = (2 * np.arange(codewords) + 1) / codewords - 1
    return make_code_bundle(
        model=encoder.model,
        encoder_hash=encoder.hash,
        center=np.array([(low + high) / 2], dtype=np.float32),
        directions=np.array([[2 / (high - low)]], dtype=np.float32),
        codewords=place_on_arc(places)[None].astype(np.float32),
        max_tokens=encoder.max_tokens,
        languages=languages,
        pairs=True,
    )


def measure_attenuations(
    bundle: CodeBundle, states: PublicStates, *, epsilons: Sequence[float]
) -> list[tuple[float, int, float]]:
    """Measure (ε, m, c) at each ε: c is the mean inner product of a public text's code and the codeword that leaves."""
    codes = project_states(states.texts[:_MEASURED], bundle)
    found = []
    for epsilon in epsilons:
        mechanism = make_subset(bundle, epsilon=epsilon)
        found.append((epsilon, mechanism.preferred, mechanism.measure_attenuation(codes)))
    return found


def _discriminate(
    tasks: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Directions that tell labels apart, the best first, uncorrelated and of variance 1 over the public text, (c, h).

    A task with C labels has C - 1 discriminants (Fisher 1936), with a ridge on the covariance within a label. All tasks
    count alike, and the discriminants of all are turned to their principal ones: what tasks share comes first.
    """
    rows = []
    for states, labels in tasks:
        values = states.astype(np.float64)
        means = np.stack([values[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        within = np.cov(values - means[labels], rowvar=False, bias=True).reshape(covariance.shape)
        shares = np.bincount(labels) / len(labels)
        gaps = (means - shares @ means) * np.sqrt(shares)[:, None]
        found = _solve_with_ridge(within, gaps)
        rows.append(found / np.sqrt(np.einsum("ij,jk,ik->", found, covariance, found, optimize=True)))
    return _turn_to_principal(np.concatenate(rows), covariance)


def _tell_names_apart(names: NDArray[np.float32], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions that tell the names of C labels apart, the best first, as those of `_discriminate`, (C - 1, h).

    A name stands for the mean of the texts with that label, and public text for how they vary around it.
    """
    values = names.astype(np.float64)
    return _turn_to_principal(_solve_with_ridge(covariance, values - values.mean(axis=0)), covariance)


def _solve_with_ridge(within: NDArray[np.float64], gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one direction for each gap between means of labels, (C, h); together they span the discriminants."""
    held = within + _RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    return np.asarray(np.linalg.solve(held, gaps.T).T)


def _turn_to_principal(found: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The span of directions as uncorrelated ones of variance 1, what most of them share first, (c, h)."""
    overlap = found @ covariance @ found.T
    weights, turns = np.linalg.eigh((overlap + overlap.T) / 2)
    kept = [place for place in np.argsort(weights)[::-1] if weights[place] > 1e-6 * weights.max()]
    return np.asarray((turns[:, kept].T @ found) / np.sqrt(weights[kept])[:, None])


def _read(path: Path, *, text_column: str, label_column: str | None, blank: bool = False) -> Iterable[tuple[str, str]]:
    with closing(read_corpus(path, text_column=text_column, label_column=label_column)) as records:
        for record in records:
            if blank or record.text.strip():
                yield record.text, record.label or ""


def _take(texts: dict[str, str]) -> list[str]:
    """At most `MOST_TEXTS` of them, in an order that depends on the texts alone."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())[:MOST_TEXTS]


def _encode(encoder: TextEncoder, texts: Sequence[str], what: str, narrator: Narrator) -> NDArray[np.float32]:
    parts = []
    with narrator.meter(f"encoding {what}", total=len(texts), unit="texts") as meter:
        rest = iter(texts)
        while chunk := list(islice(rest, _CHUNK)):
            parts.append(encoder.encode(chunk))
            meter(sum(map(len, parts)))
    return np.concatenate(parts)

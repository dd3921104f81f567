"""Readers of codes: what somebody who privatizes texts of his own alike learns to tell from a codeword.

*Linear*: ridge regression on the codeword. *Neural*: a small network on it, trained by `rapt.training.Trainer` until
texts that it was not trained on are read no better. Both see several releases of each text that the attacker holds; he
can draw as many as he likes. A third reader, of words alone, is a language model (`decoder`).

*Labels.* Where a label travels beside each code, readers of words see both, too, and stand beside what the label alone
tells: the tokens that are most frequent in the attacker's texts with that label.

*Bound.* Whatever a reader answers about one text is right with probability e^ε b / (e^ε b + 1 - b) at most, where b is
the share of the answer that is right most often without a code; b is taken among the texts that are judged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.codes.naming import bound_belief
from rapt.audit.intervals import LEVEL, Share, compute_independent_share
from rapt.local.codes.subset import SubsetMechanism

WORDS: Final = 5  # that a reader names of each text
WORDS_OF_A_TEXT: Final = f"{WORDS} tokens of a text"
USUAL_WORDS: Final = 500  # that it chooses among
RELEASES: Final = 8  # of each text that the attacker holds
_TYPICAL: Final = 5.0  # texts that the shares of all count as, beside those with a label
_RIDGE: Final = 1.0
_WIDTH: Final = 128
_BATCH: Final = 128
_RATE: Final = 2e-3
_MOST_STEPS: Final = 1000
_LOOK_EVERY: Final = 50
_PATIENCE: Final = 3  # looks without a better one

Floats = NDArray[np.float64]
# How wrong an answer is: words that occur or do not, one class of several, a number.
Loss = Literal["occurs", "class", "number"]
Predict = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well a reader does on texts that it did not learn from.

    Attributes:
        what: Name of the inference.
        reader: Name of the reader.
        first: Share of right answers.
        blind: Share without the file.
        bound: Share that no reader exceeds, whatever it knows.
        label_alone: Share that is told by the label beside the code; None where there is none, or where another thing
            than words is read.
        beyond: Share that the reader adds to the better of `blind` and `label_alone`, and the ends of its 95 % interval
            over texts; None where another thing than words is read.
    """

    what: str
    reader: str
    first: Share
    blind: float
    bound: float
    label_alone: float | None = None
    beyond: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What a reader learns from, and what it is asked about.

    Attributes:
        learned: Codes and label seen of each text that the attacker holds, one array a release, (n, k + 1) each.
        asked: Codes and label that are seen of the texts that are judged, (m, k + 1).
    """

    learned: tuple[Floats, ...]
    asked: Floats


def see_codes(mechanism: SubsetMechanism, released: NDArray[np.int64]) -> Floats:
    """Return what a reader sees of each record: its codewords side by side and a constant, (n, k + 1)."""
    books = mechanism.bundle.codewords.astype(np.float64)
    words = np.concatenate([book[released[:, run]] for run, book in enumerate(books)], axis=1)
    return np.concatenate([words, np.ones((len(words), 1))], axis=1)


def fit_linear(learned: Sequence[Floats], wanted: Floats, *, loss: Loss, seed: int) -> Predict:
    """Fit ridge regression on every release of every text; the loss is the squared one whatever is asked."""
    states = np.concatenate(learned)
    scale = _RIDGE * np.eye(states.shape[1])
    scale[-1, -1] = 1e-9
    weights = np.linalg.solve(states.T @ states + scale, states.T @ np.tile(wanted, (len(learned), 1)))
    return lambda asked: np.asarray(asked @ weights)


def fit_neural(learned: Sequence[Floats], wanted: Floats, *, loss: Loss, seed: int) -> Predict:
    """Train a network of two hidden layers, held back by a tenth of the texts."""
    import torch
    from torch import nn

    from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, scale_rate

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(wanted))
    held, kept = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    states = torch.from_numpy(np.stack(learned)).float()  # (R, n, k + 1)
    center, size = (wanted.mean(axis=0), wanted.std(axis=0) + 1e-9) if loss == "number" else (0.0, 1.0)
    targets = torch.from_numpy((wanted - center) / size).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(states.shape[2], _WIDTH),
            nn.GELU(),
            nn.Linear(_WIDTH, _WIDTH),
            nn.GELU(),
            nn.Linear(_WIDTH, wanted.shape[1]),
        )
    measure: dict[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "occurs": nn.functional.binary_cross_entropy_with_logits,
        "class": nn.functional.cross_entropy,
        "number": nn.functional.mse_loss,
    }
    trainer = Trainer([ParameterGroup(dict(network.named_parameters()), _RATE)], way_out="leave this reader out")

    def draw_batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(_MOST_STEPS):
            texts = torch.from_numpy(rng.choice(kept, size=_BATCH))
            yield states[torch.from_numpy(rng.integers(len(states), size=_BATCH)), texts], targets[texts]

    def descend(batch: tuple[torch.Tensor, torch.Tensor]) -> Losses:
        return back_propagate(measure[loss](network(batch[0]), batch[1]))

    best, found, since = math.inf, copy.deepcopy(network.state_dict()), 0
    inputs, outputs = states[:, held].flatten(0, 1), targets[held].repeat(len(states), 1)
    for _ in trainer.follow(draw_batches(), descend, rate=lambda step: scale_rate(step, _MOST_STEPS, rise=0.05)):
        if trainer.steps % _LOOK_EVERY:
            continue
        with torch.no_grad():
            now = float(measure[loss](network(inputs), outputs))
        since = 0 if now < best else since + 1
        if now < best:
            best, found = now, copy.deepcopy(network.state_dict())
        if since == _PATIENCE:
            break
    network.load_state_dict(found)

    def predict(asked: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(asked).float()).double().numpy() * size + center)

    return predict


READERS: Final[Mapping[str, Callable[..., Predict]]] = {"linear": fit_linear, "neural": fit_neural}


def explain_missing_torch() -> str | None:
    """Return why networks cannot be trained on this machine, or None."""
    return "it needs torch, which comes with the extra service" if find_spec("torch") is None else None


@dataclass(frozen=True, kw_only=True, eq=False)
class WordCounts:
    """Which of the usual tokens occur in which text.

    Attributes:
        usual: Tokens that most texts of the attacker hold, the most frequent first, (V,).
        learned: Whether each occurs in each of his texts, (n, V).
        asked: The same of the texts that are judged, (m, V).
        learned_labels: Label beside the code of each of his texts, (n, C), one 1 a row; None where there is none.
        asked_labels: The same of the texts that are judged, (m, C).
    """

    usual: NDArray[np.int64]
    learned: Floats
    asked: Floats
    learned_labels: Floats | None = None
    asked_labels: Floats | None = None

    def guess_by_label(self) -> Floats | None:
        """Return how frequent each token is in the attacker's texts with the label of each judged one, (m, V)."""
        if self.learned_labels is None or self.asked_labels is None:
            return None
        counted = self.learned_labels.T @ self.learned + _TYPICAL * self.learned.mean(axis=0)
        return np.asarray(self.asked_labels @ (counted / (self.learned_labels.sum(axis=0) + _TYPICAL)[:, None]))


def count_words(learned: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]) -> WordCounts:
    """Count the tokens of texts."""
    sets = [set(content) for content in learned]
    counted: dict[int, int] = {}
    for content in sets:
        for token in content:
            counted[token] = counted.get(token, 0) + 1
    usual = sorted(counted, key=lambda token: (-counted[token], token))[:USUAL_WORDS]

    def mark(contents: Sequence[set[int]]) -> Floats:
        return np.array([[token in content for token in usual] for content in contents], dtype=np.float64)

    return WordCounts(
        usual=np.array(usual, dtype=np.int64), learned=mark(sets), asked=mark([set(content) for content in asked])
    )


def judge_words(words: WordCounts, scores: Floats, *, reader: str, epsilon: float) -> Reading:
    """Judge the tokens that a reader scores highest in each text, (m, V)."""

    def judge(ranked: Floats) -> Floats:
        chosen = np.argsort(-ranked, axis=1, kind="stable")[:, :WORDS]
        return np.asarray(np.take_along_axis(words.asked, chosen, axis=1).mean(axis=1))

    right = judge(scores)
    # Tokens stand in the order of how frequent they are.
    guessed, blind = words.asked[:, :WORDS].mean(axis=1), float(words.asked[:, :WORDS].mean())
    kinds, label_alone = np.ones((len(words.asked), 1)), None
    if (by_label := words.guess_by_label()) is not None and words.asked_labels is not None:
        told, kinds = judge(by_label), words.asked_labels
        label_alone = float(told.mean())
        guessed = told if label_alone > blind else guessed
    # The words that occur most among the judged texts of each label, in the mean over texts: the bound is concave.
    often = (kinds.T @ words.asked) / np.maximum(kinds.sum(axis=0), 1)[:, None]
    known = float(kinds.mean(axis=0) @ np.sort(often, axis=1)[:, -WORDS:].mean(axis=1))
    value, half = _average_with_half(right - guessed)
    return Reading(
        what=WORDS_OF_A_TEXT,
        reader=reader,
        first=_average(right),
        blind=blind,
        bound=bound_belief(known, epsilon=epsilon),
        label_alone=label_alone,
        beyond=(value, value - half, value + half),
    )


def read_words(lesson: Lesson, words: WordCounts, *, reader: str, epsilon: float, seed: int) -> tuple[Reading, ...]:
    """Name the tokens that are likeliest to be in each text, from its code alone, and from code and label."""

    def read(seen: Lesson, name: str) -> Reading:
        predict = READERS[reader](seen.learned, words.learned, loss="occurs", seed=seed)
        return judge_words(words, predict(seen.asked), reader=name, epsilon=epsilon)

    alone = read(lesson, reader)
    if words.learned_labels is None or words.asked_labels is None:
        return (alone,)
    learned, asked = words.learned_labels, words.asked_labels
    both = Lesson(
        learned=tuple(np.concatenate([learned, seen], axis=1) for seen in lesson.learned),
        asked=np.concatenate([asked, lesson.asked], axis=1),
    )
    return alone, read(both, f"label-aware {reader}")


def compare_lengths(
    lesson: Lesson, learned: Sequence[int], asked: Sequence[int], *, reader: str, epsilon: float, seed: int
) -> Reading | None:
    """Say which of two texts is the longer one; None where no two differ. Both were released, so ε counts twice."""
    known, lengths = (np.log(np.maximum(1, np.array(counts))) for counts in (learned, asked))
    scores = READERS[reader](lesson.learned, known[:, None], loss="number", seed=seed)(lesson.asked)[:, 0]
    cut = len(asked) // 2
    apart = lengths[:cut] != lengths[cut : 2 * cut]
    if not apart.any():
        return None
    right = (scores[:cut] > scores[cut : 2 * cut]) == (lengths[:cut] > lengths[cut : 2 * cut])
    return Reading(
        what="which of two texts is longer",
        reader=reader,
        first=compute_independent_share(right[apart]),
        blind=0.5,
        bound=bound_belief(0.5, epsilon=2 * epsilon),
    )


def infer_column(
    lesson: Lesson,
    learned: Sequence[str],
    asked: Sequence[str],
    *,
    name: str,
    reader: str,
    epsilon: float,
    seed: int,
) -> Reading:
    """Infer a column of each text."""
    kinds = sorted({*learned, *asked})
    number = {kind: place for place, kind in enumerate(kinds)}
    known, truth = (np.array([number[value] for value in values]) for values in (learned, asked))
    predict = READERS[reader](lesson.learned, np.eye(len(kinds))[known], loss="class", seed=seed)
    usual = np.bincount(known, minlength=len(kinds)).argmax()
    return Reading(
        what=f"column {name}",
        reader=reader,
        first=compute_independent_share(predict(lesson.asked).argmax(axis=1) == truth),
        blind=float((truth == usual).mean()),
        bound=bound_belief(float(np.bincount(truth).max() / len(truth)), epsilon=epsilon),
    )


def _average(values: Floats) -> Share:
    """Return the mean of one share a text, with Student's interval."""
    value, half = _average_with_half(values)
    n = len(values)
    return Share(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n, clusters=n)


def _average_with_half(values: Floats) -> tuple[float, float]:
    """Return the mean, and half of Student's interval."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()), half

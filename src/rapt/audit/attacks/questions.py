"""Attacks that name something else than the token of each place: a whole text, a word that comes back, a telling word.

**Which text it is** (`link_texts`), by Bayes over whole texts. The number of tokens is sent in clear, so the candidates
of a privatized text y are the texts x of its length, each as likely. The attacker names the one with the largest sum of
log P(y_i | x_i). With an exact channel no attacker who holds these texts, and nothing else, does better. Source: Bayes'
rule; record linkage as a measure of disclosure goes back to Domingo-Ferrer and Torra, 2001.

**Which telling words stand there** (`flag_words`): an attacker with a list of them asks for no others. For each place
there is a probability that a word of the list stands there, given all that was seen of the text: from the channel and
an n-gram model of the attacker's text, or from the channel and the frequencies of words without one. A word is flagged
where that is at least `SURE`. A word of several pieces is there when every piece is and no more pieces follow; the
probabilities of its pieces are multiplied. Where channel and model are right, at most 1 - `SURE` of the flags are false
alarms: the mean of their probabilities is the share that is right.

**Which word comes back**: its releases are found in a file, laid on top of each other, and named together.

*Evidence of a column.* Some places are said to hold releases of one word x, each with probability λ, and any word of
the language otherwise. The odds of "they hold one" against "they hold none" are the mean over x and λ of

    Π_i (1 - λ + λ P(y_i|x) / P(y_i)),    P(y) = Σ_x prior(x) P(y|x),

and what follows for x and for each place is Bayes' rule. With λ = 1 it adds up log-likelihoods.

*Where columns come from.* By position: the places that are equally far from the beginning, or from the end, of each
text, as in letters and forms. By neighbours: runs of `RUN` places in different records that look like releases of one
run, by the odds Σ_x prior(x) P(y|x) P(y'|x) / (P(y) P(y')) of each pair of places; the profile of a run is fitted to
all records by expectation-maximization, and grows to both sides as long as the columns there hold one word.

*Guarantee* with an exact channel and places that are independent draws from the prior: a column by position is believed
with probability 1 / `_ODDS` at most over all of them, because odds that are right exceed c by chance once in c.

Source: the mixture of profile and background is that of Bailey and Elkan, "Fitting a mixture model by expectation
maximization to discover motifs in biopolymers", ISMB 1994, here with a known channel between motif and sequence.
*Not covered*: a word that comes back among other words each time, which has neither position nor neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from rapt.audit.attacks.beliefs import compute_beliefs, normalize_rows
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.attacks.learned import without_context
from rapt.audit.channels import compute_log_channel
from rapt.audit.language.layout import mark_pieces
from rapt.audit.telling_words import SURE, WordList
from rapt.audit.view import Lineup
from rapt.local.repeated_runs import RUN

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Words that are tried, by the prior, beside every token that was seen.
_TRIED: Final = 8192
# The same where pairs of places are compared: rare words say little there.
_PAIR_TRIED: Final = 2048
# Shares λ of a column's places that may hold its word.
_SHARES: Final = (0.03, 0.1, 0.3, 0.6, 0.9, 0.999)
_SHORTLIST: Final = 64
# Odds for each column or run that is tried, beyond which it is believed.
_ODDS: Final = 100.0
# Columns by position on either side.
_POSITIONS: Final = 64
_LEAST_RELEASES: Final = 3
# Runs that are fitted, steps of each fit, and places that a run may grow on either side.
_FITTED_RUNS: Final = 100
_STEPS: Final = 6
_GROWTH: Final = 24
_BLOCK: Final = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class RepetitionGuess:
    """What is named where words come back.

    Attributes:
        token_ids: Word of each place, (n,); where nothing comes back the context-free guess.
        aligned: Mask of the places that are held for a release of a word that comes back, (n,).
    """

    token_ids: Ints = field(repr=False)
    aligned: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What each output says about each word. S words, O outputs.

    Attributes:
        words: Ids of the words that are tried, (S,).
        prior: Their log prior, (S,).
        ratio: log P(y|x) / P(y), (S, O), float32.
    """

    words: Ints
    prior: Floats
    ratio: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Column:
    """Some places as releases of one word.

    Attributes:
        odds: Log odds that they hold one, over those that they hold none.
        word: Place of the likeliest word among those that are tried.
        member: Probability that each place holds it, (m,).
    """

    odds: float
    word: int
    member: Floats


def name_aligned(desk: Desk, copies: Ints, *, counts: tuple[int, ...]) -> dict[int, Ints]:
    """The likeliest word behind the first R releases of each row, for each R in `counts`, (words,) each.

    Bayes over the channel for an attacker who knows which releases belong together: one who has to find them out names
    no more, but for errors of the channel.

    Args:
        desk: Desk of the attacker.
        copies: Releases of one word in each row, (words, R).
        counts: Releases that he uses.
    """
    outputs, seen = np.unique(copies, return_inverse=True)
    evidence = _weigh_outputs(desk, outputs)
    named = {count: np.empty(len(copies), dtype=np.int64) for count in counts}
    for row, places in enumerate(seen.reshape(copies.shape)):
        value = evidence.prior[:, None] + evidence.ratio[:, places].cumsum(axis=1, dtype=np.float64)
        for count in counts:
            named[count][row] = evidence.words[value[:, count - 1].argmax()]
    return named


def name_repeated(desk: Desk, *, on_progress: Progress | None = None) -> RepetitionGuess:
    """The likeliest word of each place of the view, by all the releases that are held for releases of the same word.

    Args:
        desk: Desk of the attacker.
        on_progress: Called with the share done.

    Raises:
        AuditError: P(y|x) is not known for every pair of words.
    """
    view = desk.view
    channel, prior = desk.channel(), desk.prior()
    alone = channel.rank_sources(prior.probabilities)[:, 0][np.searchsorted(channel.outputs, view.observed)]
    outputs, seen = np.unique(view.observed, return_inverse=True)
    evidence = _weigh_outputs(desk, outputs)
    sure = (evidence.prior[:, None] + evidence.ratio).max(axis=0)[seen]  # log P(likeliest word | y)
    named, held = alone.copy(), np.zeros(len(alone))

    def take(places: Ints, column: _Column) -> None:
        """Name the column's word where it is likelier than every other."""
        own = np.exp(evidence.prior[column.word] + evidence.ratio[column.word, seen[places]])
        chance = column.member + (1 - column.member) * own
        better = (chance > held[places]) & (chance >= (1 - column.member) * np.exp(sure[places]))
        named[places[better]] = evidence.words[column.word]
        held[places[better]] = chance[better]

    columns = list(_iterate_columns(view.lengths))
    for number, places in enumerate(columns):
        column = _weigh_column(evidence, seen[places])
        if column.odds > np.log(_ODDS * len(columns)):
            take(places, column)
        if on_progress is not None:
            on_progress(0.5 * (number + 1) / len(columns))
    for places, column in _find_runs(evidence, seen, view.lengths, len(view.parts)):
        take(places, column)
    if on_progress is not None:
        on_progress(1.0)
    return RepetitionGuess(token_ids=named, aligned=held > 0.5)


def _weigh_outputs(desk: Desk, outputs: Ints) -> _Evidence:
    prior = desk.prior().probabilities
    tried = np.argsort(-prior, kind="stable")[:_TRIED]
    words = np.union1d(tried[prior[tried] > 0], outputs[prior[outputs] > 0])
    logs = compute_log_channel(
        desk.view.manifest.mechanism, desk.view.bundle, sources=words, outputs=outputs, rng=desk.rng("repetition")
    )
    weight = np.log(prior[words] / prior[words].sum())
    for start in range(0, len(outputs), _BLOCK):
        part = logs[:, start : start + _BLOCK]
        total = logsumexp(part + weight[:, None], axis=0)
        part -= np.where(np.isfinite(total), total, 0.0).astype(np.float32)
    return _Evidence(words=words, prior=weight, ratio=logs)


def _weigh_column(evidence: _Evidence, outputs: Ints) -> _Column:
    """The odds of a column whose places put out these outputs, and what follows.

    Only words of a shortlist are summed over, so the odds are never overstated.
    """
    different, place, times = np.unique(outputs, return_inverse=True, return_counts=True)
    ratio = evidence.ratio[:, different]
    halves = np.logaddexp(ratio, np.float32(0.0)) @ times.astype(np.float32)
    count = min(_SHORTLIST, len(halves))
    best = np.argpartition(-(halves + evidence.prior), count - 1)[:count]
    ratio = ratio[best].astype(np.float64)
    shares = np.array(_SHARES)[:, None, None]
    mixed = np.logaddexp(np.log1p(-shares), np.log(shares) + ratio)  # (G, count, different)
    value = evidence.prior[best] + mixed @ times - np.log(len(_SHARES))
    odds = float(logsumexp(value))
    weight = np.exp(value - odds)
    word = int(weight.sum(axis=0).argmax())
    member = (weight[:, word, None] * np.exp(np.log(shares[:, 0]) + ratio[word] - mixed[:, word])).sum(axis=0)
    return _Column(odds=odds, word=int(best[word]), member=member[place])


def _iterate_columns(lengths: Ints) -> Iterator[Ints]:
    """Places equally far from the beginning of their texts, and from the end."""
    starts, ends = np.cumsum(lengths) - lengths, np.cumsum(lengths)
    for far in range(min(_POSITIONS, int(lengths.max(initial=0)))):
        there = lengths > far
        if there.sum() >= _LEAST_RELEASES:
            yield starts[there] + far
            yield ends[there] - 1 - far


def _find_runs(evidence: _Evidence, seen: Ints, lengths: Ints, parts: int) -> Iterator[tuple[Ints, _Column]]:
    """The columns of every run of places that comes back in other records, the likeliest run first."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    windows = np.flatnonzero(text[: max(0, len(text) - RUN + 1)] == text[RUN - 1 :])
    if len(windows) < 2:
        return
    # Windows of a record stand together: where each record's begin.
    begins = np.flatnonzero(np.diff(text[windows] // parts, prepend=-1))
    if len(begins) < _LEAST_RELEASES:
        return
    threshold = np.log(_ODDS * len(windows))
    odds = _compare_windows(evidence, seen, windows, begins)
    likelihood = np.exp(evidence.ratio)
    claimed = np.zeros(len(seen), dtype=bool)
    fitted = 0
    for place in np.argsort(-odds, kind="stable"):
        if odds[place] <= threshold or fitted >= _FITTED_RUNS:
            return
        if claimed[windows[place]]:
            continue
        fitted += 1
        found = windows[_fit_run(evidence, likelihood, seen, windows, begins, int(windows[place]))]
        claimed[found] = True
        if len(found) < _LEAST_RELEASES:
            continue
        for side in (range(RUN + _GROWTH), range(-1, -_GROWTH - 1, -1)):
            for offset in side:
                places = found + offset
                places = places[(places >= 0) & (places < len(text))]
                places = places[np.isin(places - offset, found) & (text[places] == text[places - offset])]
                if len(places) < _LEAST_RELEASES:
                    break
                column = _weigh_column(evidence, seen[places])
                if column.odds <= np.log(_ODDS):
                    if offset in range(RUN):
                        continue
                    break
                claimed[places[column.member > 0.5]] = True
                yield places, column


def _compare_windows(evidence: _Evidence, seen: Ints, windows: Ints, begins: Ints) -> Floats:
    """Log odds that a run comes back in other records, for the run that begins at each window, (windows,)."""
    common = np.argsort(-evidence.prior, kind="stable")[:_PAIR_TRIED]
    root = np.exp(evidence.ratio[common] + 0.5 * evidence.prior[common, None].astype(np.float32))
    with np.errstate(divide="ignore"):
        pair = np.log(root.T @ root)  # (O, O)
    sizes = np.diff(begins, append=len(windows))
    record = np.repeat(np.arange(len(begins)), sizes)
    odds = np.empty(len(windows))
    for start in range(0, len(windows), _BLOCK):
        rows = windows[start : start + _BLOCK]
        total = np.zeros((len(rows), len(windows)), dtype=np.float32)
        for step in range(RUN):
            total += pair[seen[rows + step]][:, seen[windows + step]]
        mean = np.add.reduceat(np.exp(np.minimum(total, 60.0)), begins, axis=1) / sizes
        mean[np.arange(len(rows)), record[start : start + _BLOCK]] = 1.0  # its own record says nothing
        odds[start : start + _BLOCK] = logsumexp(
            [np.log1p(share * (mean - 1)).sum(axis=1) for share in _SHARES], axis=0
        ) - np.log(len(_SHARES))
    return odds


def _fit_run(
    evidence: _Evidence, likelihood: NDArray[np.float32], seen: Ints, windows: Ints, begins: Ints, start: int
) -> Ints:
    """Places among the windows of the releases of the run that begins at `start`, in a fit to all records."""
    sizes = np.diff(begins, append=len(windows))
    record = np.repeat(np.arange(len(begins)), sizes)
    steps = np.arange(RUN)
    profile = evidence.prior[:, None] + evidence.ratio[:, seen[start + steps]]  # (S, RUN)
    member = np.zeros(len(windows))
    for _ in range(_STEPS):
        profile = np.exp(profile - logsumexp(profile, axis=0))
        with np.errstate(divide="ignore"):
            table = np.log(profile.T.astype(np.float32) @ likelihood)  # (RUN, O)
        total = table[steps[:, None], seen[windows + steps[:, None]]].sum(axis=0, dtype=np.float64)
        odds = np.exp(np.minimum(total, 60.0))
        mean = np.add.reduceat(odds, begins) / sizes
        share = max(_SHARES, key=lambda share: float(np.log1p(share * (mean - 1)).sum()))
        member = share * odds / sizes[record] / (1 + share * (mean[record] - 1))
        used = np.flatnonzero(member > 0.01)
        if not len(used):
            break
        weighted = [evidence.ratio[:, seen[windows[used] + step]] @ member[used] for step in range(RUN)]
        profile = evidence.prior[:, None] + np.stack(weighted, axis=1)
    return np.flatnonzero(member > 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkageGuess:
    """The candidate that is named for each text.

    Attributes:
        places: Place of the candidate in the line-up, (texts,); -1 for a text of whose length there is none.
        probabilities: Probability that the attacker gives to it, (texts,).
        entropies: Bits that he still lacks, (texts,): the entropy of what he believes of all candidates.
    """

    places: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    entropies: NDArray[np.float64]


def link_texts(desk: Desk, lineup: Lineup) -> LinkageGuess:
    """The likeliest text of a line-up for each text of the view, among those of its length.

    Raises:
        AuditError: P(y|x) is not known for every pair of words.
    """
    view = desk.view
    by_length: dict[int, NDArray[np.int64]] = {}
    lengths = np.array([len(text) for text in lineup.contents], dtype=np.int64)
    for length in np.unique(view.lengths[view.lengths > 0]).tolist():
        by_length[length] = np.flatnonzero(lengths == length)
    used = [lineup.contents[place] for places in by_length.values() for place in places]
    places = np.full(len(view.texts), -1, dtype=np.int64)
    probabilities = np.zeros(len(view.texts))
    entropies = np.full(len(view.texts), np.log2(max(1, len(lineup.contents))))
    if not used:
        return LinkageGuess(places=places, probabilities=probabilities, entropies=entropies)
    sources, outputs = np.unique(np.concatenate(used)), np.unique(view.observed)
    channel = compute_log_channel(
        view.manifest.mechanism, view.bundle, sources=sources, outputs=outputs, rng=desk.rng("linkage")
    )
    rows = {
        length: np.searchsorted(sources, np.stack([lineup.contents[place] for place in found]))
        for length, found in by_length.items()
        if len(found)
    }
    for text, seen in enumerate(view.texts):
        if len(seen) not in rows:
            continue
        columns = np.searchsorted(outputs, np.array(seen))
        score = channel[rows[len(seen)], columns].sum(axis=1, dtype=np.float64)
        best = int(score.argmax())
        places[text] = by_length[len(seen)][best]
        if np.isfinite(score[best]):
            odds = np.exp(score - score[best])
            probabilities[text] = 1 / odds.sum()
            believed = odds[odds > 0] / odds.sum()
            entropies[text] = max(0.0, -float((believed * np.log2(believed)).sum()))
    return LinkageGuess(places=places, probabilities=probabilities, entropies=entropies)


def flag_words(desk: Desk, words: WordList, *, on_progress: Progress | None = None) -> tuple[Ints, Ints]:
    """Places that are flagged, and the word of the list that is said to begin there.

    Args:
        desk: Desk of the attacker.
        words: List of words.
        on_progress: Called with the share done.
    """
    lattice = desk.lattice()
    if desk.view.public is None:
        beliefs = normalize_rows(without_context(lattice))
    else:
        beliefs = compute_beliefs(desk, on_progress=on_progress)
    best = beliefs[:, :-1].argmax(axis=1)[:, None]
    likeliest = np.take_along_axis(lattice.candidates, best, axis=1)[:, 0]
    chance = np.exp(np.take_along_axis(beliefs, best, axis=1)[:, 0])
    pieces = mark_pieces(desk.view.bundle)
    # No product is at least `SURE` unless each factor is.
    places, numbers = words.find_uses(np.where(chance >= SURE, likeliest, -1), desk.view.lengths, pieces)
    ends = np.cumsum(desk.view.lengths)
    text = np.repeat(np.arange(len(desk.view.lengths)), desk.view.lengths)
    goes_on = (np.exp(beliefs[:, :-1]) * pieces[lattice.candidates[:, :-1]]).sum(axis=1)
    kept = []
    for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
        end = place + len(words.words[number])
        whole = chance[place:end].prod() * (1 - goes_on[end] if end < ends[text[place]] else 1.0)
        kept.append(bool(whole >= SURE))
    return places[kept], numbers[kept]

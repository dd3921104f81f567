"""What is asked of a file beside its words: which text it is, which word comes back, which telling words it holds.

Each question is an attack with its own answer, put and scored in one function, and one entry in a closed dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from rapt.audit.attacks import KEYWORDS, LINKAGE, REPETITION
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.questions import flag_words, link_texts, name_aligned, name_repeated
from rapt.audit.channels import explain_missing_pairs
from rapt.audit.judge.questions import (
    MOST_LINKED_TOKENS,
    RELEASES,
    KeywordResult,
    LinkageResult,
    RepeatedWords,
    RepetitionResult,
    choose_repeating_records,
    draw_words,
    line_up,
    score_fresh,
    score_keywords,
    score_linkage,
    score_repeated,
)
from rapt.audit.telling_words import make_word_list
from rapt.audit.truth import Truth, sample_records
from rapt.errors import AuditError

Answer = LinkageResult | RepetitionResult | KeywordResult
# Words by kind, for the question that takes a list.
Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """An attack that names something else than the token of each place.

    Attributes:
        ask: Puts it to the attacker at a desk, and scores his answer.
        answer: Type of the answer.
        reason_to_skip: Reason why it cannot be put to this attacker, with these words, or None.
        weight: Seconds, as in `Attack`.
        fast: Whether it is part of a quick look.
    """

    ask: Callable[[Desk, Truth, Words], Answer]
    answer: type[Answer]
    reason_to_skip: Callable[[Desk, Words], str | None]
    weight: float
    fast: bool = True


def _link(desk: Desk, truth: Truth, words: Words) -> LinkageResult:
    view = desk.view
    lineup, answers = line_up(view, truth, seed=desk.seed)
    # Numbered through the records: the part that is attacked keeps the answers of its texts.
    part, its_truth = sample_records(view, truth, tokens=MOST_LINKED_TOKENS, seed=desk.seed)
    if len(part.records) < len(view.records):
        assert its_truth.records is not None  # a part knows which records it holds
        places = its_truth.records if truth.records is None else np.searchsorted(truth.records, its_truth.records)
        answers = answers.reshape(len(view.records), len(view.parts))[places].ravel()
    guess = link_texts(Desk(part, seed=desk.seed), lineup)
    return score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)


def _count_on_repetition(desk: Desk, truth: Truth, words: Words) -> RepetitionResult:
    view, its_truth = choose_repeating_records(desk.view, truth, seed=desk.seed)
    own: tuple[RepeatedWords, ...] = ()
    if view is not None:
        channel = desk.channel()
        alone = channel.rank_sources(desk.prior().probabilities)[:, 0]
        own = score_repeated(
            name_repeated(desk.at(view)).token_ids,
            alone=alone[np.searchsorted(channel.outputs, view.observed)],
            view=view,
            truth=its_truth,
        )
    true = draw_words(truth, seed=desk.seed)
    copies = desk.mechanism().privatize(np.repeat(true, max(RELEASES)), rng=desk.rng("releases"))
    named = name_aligned(desk, copies.reshape(len(true), -1), counts=RELEASES)
    return RepetitionResult(
        fresh=score_fresh(named, true=true, truth=truth),
        own=own,
        tokens=len((desk.view if view is None else view).observed),
    )


def _look_for_words(desk: Desk, truth: Truth, words: Words) -> KeywordResult:
    listed = make_word_list(desk.vocabulary(), words)
    places, numbers = flag_words(desk, listed)
    return score_keywords(places, numbers, words=listed, view=desk.view, truth=truth)


def _explain_missing_pairs(desk: Desk, words: Words) -> str | None:
    return explain_missing_pairs(desk.view.manifest.mechanism, desk.view.bundle)


def _explain_missing_words(desk: Desk, words: Words) -> str | None:
    try:
        make_word_list(desk.vocabulary(), words)
    except AuditError as error:
        return str(error)
    return desk.channel_unknown


QUESTIONS: Final[Mapping[str, Question]] = MappingProxyType(
    {
        LINKAGE: Question(ask=_link, answer=LinkageResult, reason_to_skip=_explain_missing_pairs, weight=20),
        KEYWORDS: Question(ask=_look_for_words, answer=KeywordResult, reason_to_skip=_explain_missing_words, weight=10),
        REPETITION: Question(
            ask=_count_on_repetition,
            answer=RepetitionResult,
            reason_to_skip=_explain_missing_pairs,
            weight=60,
            fast=False,
        ),
    }
)

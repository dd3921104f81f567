"""Runs of tokens that stand in several records are counted exactly, in bounded memory, and what is said has no word."""

from collections import Counter

import numpy as np
import pytest

from rapt.local.repeated_runs import RUN, RunCounter, digest_runs


def counted(records, *, least=10, **limits):
    counter = RunCounter(**limits)
    for start in range(0, len(records), 7):
        counter.add(records[start : start + 7])
    return counter.count(least=least)


def by_hand(records, *, least):
    runs = Counter()
    for texts in records:
        runs.update({tuple(text[i : i + RUN]) for text in texts for i in range(len(text) - RUN + 1)})
    often = [times for times in runs.values() if times >= least]
    return len(often), max(often, default=0)


def test_runs_are_counted_as_by_hand():
    rng = np.random.default_rng(0)
    records = [[rng.integers(0, 3, rng.integers(0, 12)).tolist() for _ in range(2)] for _ in range(200)]
    found = counted(records, least=5)
    assert (found.runs, found.most) == by_hand(records, least=5)
    assert found.runs > 20


def test_a_run_counts_once_in_a_record_and_never_across_two_texts():
    again = [[[1, 2, 3, 4, 1, 2, 3, 4]]] * 9
    assert counted(again).runs == 0
    assert counted([*again, again[0]]).most == 10
    assert counted([[[1, 2], [3, 4]]] * 20).runs == 0


def test_different_runs_have_different_digests():
    grid = np.stack(np.meshgrid(*[np.arange(8)] * RUN), axis=-1).reshape(-1, RUN)
    assert len({int(digest_runs(run)[0]) for run in grid}) == len(grid)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3]])
def test_a_text_that_is_shorter_than_a_run_has_none(tokens):
    assert len(digest_runs(tokens)) == 0


def test_a_file_that_is_too_large_to_hold_is_counted_from_a_part_of_its_runs():
    # 4,000 runs in 12 records each: a part of them is held, in all of their records, and scaled up.
    records = [[list(range(start, start + RUN))] for _ in range(12) for start in range(0, 16_000, RUN)]
    found = counted(records, most_held=5_000)
    assert found.most == 12
    assert found.runs == pytest.approx(4_000, rel=0.15)
    assert counted(records).runs == 4_000


def test_what_is_said_holds_counts_and_no_word():
    said = counted([[[7, 8, 9, 10, 11]]] * 12).remark
    assert "2 runs of 4 tokens stand in 10 records or more, one of them in 12" in said
    assert counted([[[7, 8, 9, 10, 11]]] * 9).remark == ""

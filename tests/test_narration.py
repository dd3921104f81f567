"""The words of a progress line: rate and time left, without what an earlier run had done."""

from __future__ import annotations

import pytest

from rapt.narration import Pace, write_duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rate_and_time_left_are_those_since_the_first_report():
    clock = Clock()
    pace = Pace(clock)
    assert pace(1_000_000, share=0.5) == "50 %, 1,000,000 tokens"
    clock.now += 10
    assert pace(1_200_000, share=0.6) == "60 %, 1,200,000 tokens, 20,000 a second, 40 s left"


def test_without_a_known_size_there_is_a_rate_and_no_end():
    clock = Clock()
    pace = Pace(clock)
    assert pace(512, share=0.0) == "512 tokens"
    clock.now += 2
    assert pace(1_536, share=0.0) == "1,536 tokens, 512 a second"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3_540, "59 min"), (4_800, "1 h 20 min")]
)
def test_durations_are_words(seconds, words):
    assert write_duration(seconds) == words

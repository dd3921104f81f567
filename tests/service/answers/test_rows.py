import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapt.service.answers.rows import GROWTH, MAX_POSITIONS, MAX_ROWS, SHORT, choose_size_class, cut_into_passes

LENGTHS = st.lists(st.integers(1, 600), max_size=150)


@settings(max_examples=50)
@given(LENGTHS, st.data())
def test_every_row_is_in_exactly_one_pass_with_its_like(lengths, data):
    lanes = data.draw(st.lists(st.sampled_from("ab"), min_size=len(lengths), max_size=len(lengths)))
    passes = cut_into_passes(lengths, lanes=lanes)
    assert sorted(position for chosen in passes for position in chosen) == list(range(len(lengths)))
    for chosen in passes:
        longest, shortest = (pick(lengths[position] for position in chosen) for pick in (max, min))
        assert len({lanes[position] for position in chosen}) == 1
        assert len(chosen) <= MAX_ROWS
        assert len(chosen) * longest <= MAX_POSITIONS["cpu"]
        assert longest <= max(SHORT, GROWTH * shortest)
    longest = [max(lengths[position] for position in chosen) for chosen in passes]
    assert longest == sorted(longest)


def test_short_rows_of_any_length_stay_together():
    lengths = list(range(1, SHORT + 1, 3))
    assert len(cut_into_passes(lengths, lanes=[None] * len(lengths))) == 1


def test_a_pass_is_larger_where_no_processor_computes_it():
    lengths = [100] * 60
    assert len(cut_into_passes(lengths, lanes=[None] * 60)) == 6
    assert len(cut_into_passes(lengths, lanes=[None] * 60, device="cuda")) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_are_few_passes(count):
    assert cut_into_passes([7] * count, lanes=[None] * count) == [[0]] * count


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=50))
def test_rows_of_one_class_are_all_short_or_alike_within_a_factor_of_two(lengths):
    by_class = {}
    for length in lengths:
        by_class.setdefault(choose_size_class(length, short=64), []).append(length)
    for name, alike in by_class.items():
        assert max(alike) <= (2 * min(alike) if name else 64)
    assert set(by_class) == {0} or max(lengths) > 64

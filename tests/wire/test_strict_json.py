import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_documents import MARKER, value_or_refusal
from rapt.errors import WireError
from rapt.wire.strict_json import (
    LARGEST,
    MOST_FIELDS,
    MOST_LEVELS,
    check_json,
    dump_line,
    parse_document,
    parse_json,
    read_ids,
)

KEPT = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\r")
NUMBERS = st.integers(-LARGEST, LARGEST) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(KEPT),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(KEPT), inner),
    max_leaves=20,
)


def levels(depth):
    return "[" * depth + "]" * depth


@given(VALUES)
def test_what_is_within_the_limits_is_read_as_it_was_written(value):
    for ascii_only in (True, False):
        written = json.dumps(value, ensure_ascii=ascii_only)
        assert parse_json(written.encode(), what="it") == parse_json(written, what="it") == value
    check_json(value, what="it")


@given(st.binary() | st.text().map(lambda text: json.dumps({MARKER: text})) | st.text())
def test_whatever_comes_is_a_value_or_one_line_that_repeats_nothing_and_a_value_can_be_written_again(raw):
    value = value_or_refusal(lambda: parse_json(raw, what="it"))
    check_json(value, what="it")
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")


@pytest.mark.parametrize(
    "written",
    [
        b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}', b'{"a": -1e999}',
        b'{"a": 9223372036854775808}', b'{"a": -99999999999999999999}', b'{"a": ' + b"9" * 401 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 0.' + b"1" * 400 + b"}",
        b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"\\udc00": 1}', b'{"a": ["\\u0000"]}', b'{"a\\u0000": 1}',
        b'{"a": "\\b"}', b'{"a": "\\u001b[2J"}', b'{"a": "\x7f"}', '{"a": "\x9b2J"}'.encode(), b'{"a": "\x00"}',
        b'{"a": "\xed\xa0\x80"}', b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"), b"", b"{", b"\xef\xbb\xbf",
        levels(MOST_LEVELS + 1).encode(), levels(100_000).encode(), b'{"a":' * 100_000,
        json.dumps(dict.fromkeys(map(str, range(MOST_FIELDS + 1)), 1)).encode(),
    ],
)  # fmt: skip
def test_what_is_beyond_a_limit_is_refused(written):
    with pytest.raises(WireError, match=r"^it must ") as refused:
        parse_json(written, what="it")
    assert len(str(refused.value)) < 250


def test_what_stands_at_a_limit_is_read():
    for number in (LARGEST, -LARGEST, 1.7976931348623157e308, 5e-324):
        assert parse_json(json.dumps([number]), what="it") == [number]
    assert json.dumps(parse_json(levels(MOST_LEVELS), what="it")) == levels(MOST_LEVELS)
    assert parse_json('"\\ud83d\\ude00 \\t\\r\\n"', what="it") == "\U0001f600 \t\r\n"
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', what="it") == {"a": 1}
    assert len(parse_document(dump_line({str(n): n for n in range(MOST_FIELDS)}), what="it")) == MOST_FIELDS


@pytest.mark.parametrize(
    "value",
    [
        {"a": float("nan")}, [1.0, float("inf")], [1, 2, LARGEST + 1], [-LARGEST - 1, True, None], {"a": 10**400},
        {"\ud800": 1}, ["\x00"], [[["\x1b"]]], [[1], json.loads(levels(MOST_LEVELS))],
    ],
)  # fmt: skip
def test_a_value_that_was_parsed_elsewhere_is_held_to_the_same(value):
    with pytest.raises(WireError, match=r"^it must "):
        check_json(value, what="it")


@pytest.mark.parametrize("ids", [[2**31], [10**400], [-1], [1.0], [True], [None], ["1"], "1", {}, None])
def test_token_ids_are_whole_numbers_of_31_bits(ids):
    with pytest.raises(WireError, match=r"token ids|whole numbers"):
        read_ids({"a": ids}, "a", what="it")
    assert read_ids({"a": [0, 2**31 - 1]}, "a", what="it") == (0, 2**31 - 1)


@pytest.mark.parametrize(
    "written",
    [
        "[" + "12345," * 300_000 + "1]",
        "[" + "1234567890123456789," * 100_000 + "1]",
        "[" + '{"a":[{}]},' * 100_000 + "1]",
        '"' + "\\u00e9" * 300_000 + '"',
        "[" * 2_000_000,
        "9" * 2_000_000,
        "[" + "0.1," * 400_000 + "1",
    ],
    ids=["ids", "large numbers", "objects", "escapes", "brackets", "digits", "cut off"],
)
def test_two_megabytes_take_seconds_and_memory_in_proportion(written):
    started = time.process_time()
    tracemalloc.start()
    try:
        parse_json(written, what="it")
    except WireError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100 * len(written)
    assert time.process_time() - started < 30

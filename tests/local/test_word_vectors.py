import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapt.errors import CorpusError, UsageError, VocabularyError
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.local.word_vectors import read_word_vectors
from rapt.wire.vocabulary_bundle import read_bundle, write_bundle

SECRET = "zanzibarsecret"
GLOVE = "the 0.5 1 -2\ngood 1 2 3\nfilm -1e-1 0 4.25\n, 0 0 1\n</s> 9 9 9\n"
ROWS = np.array([[0.5, 1, -2], [1, 2, 3], [-0.1, 0, 4.25], [0, 0, 1], [9, 9, 9]], dtype=np.float32)


@pytest.fixture
def file(tmp_path):
    def write(content, name="glove.3d.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


FORMS = {
    "glove": GLOVE,
    "no end of line": GLOVE.rstrip("\n"),
    "word2vec": "5 3\n" + GLOVE,
    "fasttext": "5 3\n" + GLOVE.replace("\n", " \n"),
    "windows": "\ufeff" + GLOVE.replace("\n", "\r\n"),
}


def named(vocabulary):
    """The name in manifests: of what the file holds, and not of the file."""
    return "word-vectors-" + vocabulary.hash.removeprefix("sha256:")[:12]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.txt", "a.vec", "a.glove", "a"])
def test_every_form_gives_the_same_vocabulary(file, form, name):
    vocabulary = load_vocabulary(str(file(FORMS[form], name)))
    assert (vocabulary.model, vocabulary.size, vocabulary.dimension) == (named(vocabulary), 6, 3)
    np.testing.assert_array_equal(vocabulary.embeddings[:5], ROWS)
    assert vocabulary.tokens(range(6)) == ["the", "good", "film", ",", "</s>", "[UNK]"]


def test_the_row_of_unknown_words_is_the_mean_and_never_an_output(file):
    vocabulary = load_vocabulary(str(file(GLOVE)))
    np.testing.assert_allclose(vocabulary.embeddings[5], ROWS.mean(axis=0), rtol=1e-6)
    assert vocabulary.eligible.tolist() == [0, 1, 2, 3]


def test_a_text_is_split_at_spaces_and_punctuation(file):
    vocabulary = load_vocabulary(str(file(GLOVE)))
    assert vocabulary.encode(["The good,film\tgood  </s> [UNK]"]) == [[0, 1, 3, 2, 1, *[5] * 4, *[5] * 3]]
    assert vocabulary.decode([0, 1, 3, 2]) == "the good, film"
    assert vocabulary.bundle.special_tokens == 0


def test_a_word_outside_becomes_unknown_and_is_privatized(file):
    vocabulary = load_vocabulary(str(file(GLOVE)))
    ids = vocabulary.encode([f"good {SECRET} film 你好"])[0]
    assert ids == [1, 5, 2, 5]
    out = make_mechanism("laplace", vocabulary=vocabulary, eta=1e6).privatize(
        np.array(ids), rng=insecure_stream(1).generator
    )
    assert out.tolist()[::2] == [1, 2]
    assert set(out.tolist()) <= {0, 1, 2, 3}


def test_a_word_outside_is_refused_when_told_by_its_position(file):
    vocabulary = load_vocabulary(str(file(GLOVE)), unknown="refuse")
    assert vocabulary.encode(["good film"]) == [[1, 2]]
    with pytest.raises(CorpusError, match=r"record 9 must have .* got 2 others, the first as token 1") as caught:
        vocabulary.encode(["good", f"good {SECRET} film {SECRET}"], first_position=7)
    assert SECRET not in str(caught.value)


def test_a_policy_that_nobody_knows_is_refused(file):
    with pytest.raises(UsageError, match="unknown words must be for unk or refuse, got 'raw'"):
        load_vocabulary(str(file(GLOVE)), unknown="raw")


@pytest.mark.parametrize(
    ("content", "lowercase", "ids"),
    [
        ("the 1 2\ngood 3 4\n", None, [0, 1]),
        ("the 1 2\nGood 3 4\n", None, [2, 1]),
        ("the 1 2\nGood 3 4\n", True, [0, 2]),
        ("the 1 2\ngood 3 4\n", False, [2, 2]),
    ],
)
def test_case_goes_by_the_table_unless_told(file, content, lowercase, ids):
    vocabulary = Vocabulary(read_word_vectors(file(content), lowercase=lowercase))
    assert vocabulary.encode(["The Good"]) == [ids]


def test_a_table_is_kept_as_a_bundle(file, tmp_path):
    bundle = read_word_vectors(file(GLOVE))
    write_bundle(bundle, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").hash == bundle.hash


BAD = [
    ("", "at least one line"),
    ("\n", "at least one line"),
    (SECRET, "line 1 of the word vectors must be a word and its numbers"),
    (f"good 1 2\n{SECRET} 1\n", "line 2 of the word vectors must have a word and 2 numbers, got 1"),
    (f"good 1 2\n{SECRET} 1 2 3\n", "line 2 of the word vectors must have a word and 2 numbers, got 3"),
    (f"good 1 2\n\n{SECRET} 1 2\n", "line 2 of the word vectors must have a word and 2 numbers, got 0"),
    (f"{SECRET} 1 nan\n", "line 1 of the word vectors must have finite numbers"),
    (f"{SECRET} 1 -inf\n", "line 1 of the word vectors must have finite numbers"),
    (f"{SECRET} 1 1e300\n", "line 1 of the word vectors must have finite numbers"),
    (f"good 1 2\n{SECRET} 1 {SECRET}\n", "line 2 of the word vectors must have numbers after its word"),
    (f"good 1 2\n{SECRET}  2\n", "line 2 of the word vectors must have numbers after its word"),
    (" 1 2\n", "line 1 of the word vectors must have a word, and none that is"),
    ("[UNK] 1 2\n", "line 1 of the word vectors must have a word, and none that is"),
    (f"3 2\n{SECRET} 1 2\n", "the header of the word vectors must count them, got 3 for 1 lines"),
    (f"1 3\n{SECRET} 1 2\n", "line 2 of the word vectors must have a word and 3 numbers, got 2"),
    ("0 3\n", "some lines of some numbers, got 0"),
    (f"1 99999999999\n{SECRET} 1\n", "some lines of some numbers"),
    (f"99999999999 2\n{SECRET} 1 2\n", "the header of the word vectors must count them"),
    (f"good 1 2\n{SECRET}\xe9 1 2\n".encode("latin-1"), "line 2 of the word vectors must be utf-8"),
    (b"5 3\n\xff\xfe\x00\x01", "the header of the word vectors must count|line 2 of the word vectors must be utf-8"),
    (f"{SECRET} " + "1 " * 600_000, "line 1 of the word vectors must be at most 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=range(len(BAD)))
def test_a_damaged_file_is_one_clear_line_without_what_it_holds(file, content, message):
    with pytest.raises(VocabularyError, match=message) as caught:
        load_vocabulary(str(file(content)))
    said = str(caught.value)
    assert SECRET not in said
    assert "\n" not in said
    assert not said.endswith(".")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match="word vectors must be readable, got No such file"):
        read_word_vectors(tmp_path / "none.vec")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=80))
def test_any_text_is_privatized_or_has_no_token(file, text):
    vocabulary = load_vocabulary(str(file(GLOVE)))
    plain = plan_plain_tokens(vocabulary, count=2, pool_size=2, drawn="record", rng=insecure_stream(1).generator)
    privatizer = Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=1.0), plain)
    if not text.split() and vocabulary.encode([text]) == [[]]:
        return
    record = privatizer.privatize([text], labels=None, stream=insecure_stream(2))[0]
    assert set(record.token_ids) <= set(vocabulary.eligible.tolist())
    vocabulary.decode(record.token_ids).encode("utf-8")


def test_memory_stays_below_twice_the_table(file, tmp_path):
    numbers = " ".join(["0.125"] * 1_000)
    path = file("".join(f"w{i} {numbers}\n" for i in range(600)))
    tracemalloc.start()
    try:
        table = read_word_vectors(path).embeddings
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * table.nbytes


def vectors_of(path, **arguments):
    remarks = []
    bundle = read_word_vectors(path, remark=remarks.append, **arguments)
    return Vocabulary(bundle), remarks


def test_words_of_glove_may_hold_spaces(file):
    vocabulary, remarks = vectors_of(file(". . . 1 2 3\nthe 0 0 1\nat name@domain.com 4 5 6\ngood 1 0 0\nfilm 0 1 0\n"))
    assert vocabulary.tokens(range(6)) == [". . .", "the", "at name@domain.com", "good", "film", "[UNK]"]
    assert vocabulary.embeddings[2].tolist() == [4, 5, 6]
    assert remarks == []


def test_the_first_row_of_a_word_that_comes_again_counts_and_that_is_said(file):
    vocabulary, remarks = vectors_of(file("good 1 2\nfilm 3 4\ngood 5 6\ngood 7 8\n"))
    assert vocabulary.embeddings.tolist() == [[1, 2], [3, 4], [2, 3]]
    assert remarks == ["2 words of the vectors came again, and were left out: the first of each counts"]


@pytest.mark.parametrize("end", ["\n", "\n\n", " \r\n\n"])
@pytest.mark.parametrize("header", ["", "5 3\n"])
def test_blank_lines_at_the_end_are_no_words(file, end, header):
    assert load_vocabulary(str(file(header + GLOVE + end))).size == 6


@pytest.mark.parametrize("form", FORMS)
def test_a_compressed_file_is_read_as_it_is(file, form):
    path = file(gzip.compress(FORMS[form].encode()), "glove.3d.txt.gz")
    vocabulary = load_vocabulary(path)
    assert (vocabulary.model, vocabulary.hash) == (named(vocabulary), load_vocabulary(file(GLOVE)).hash)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(VocabularyError, match="word vectors must be readable"):
        load_vocabulary(path)


def word2vec_binary(rows=ROWS, words=("the", "good", "film", ",", "</s>"), *, line_ends=True, count=None):
    header = f"{len(words) if count is None else count} {rows.shape[1]}\n".encode()
    after = b"\n" if line_ends else b""
    numbers = [struct.pack(f"<{rows.shape[1]}f", *row) for row in rows]
    return header + b"".join(word.encode() + b" " + row + after for word, row in zip(words, numbers, strict=True))


@pytest.mark.parametrize("line_ends", [True, False])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_binary_format_of_word2vec_gives_the_same_vocabulary(file, line_ends, compress):
    path = file(compress(word2vec_binary(line_ends=line_ends)), "a.bin")
    assert load_vocabulary(path).hash == load_vocabulary(file(GLOVE)).hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (word2vec_binary()[:-3], "word 5 of the word vectors must be .* with 3 finite numbers|must count them"),
        (word2vec_binary(count=6), "must count them|word 6 of the word vectors must end with a space"),
        (word2vec_binary(count=10**9), "the header of the word vectors must count them"),
        (word2vec_binary(ROWS * np.nan), "word 1 of the word vectors must be utf-8 text"),
    ],
)
def test_a_damaged_binary_file_is_refused(file, content, message):
    with pytest.raises(VocabularyError, match=message):
        load_vocabulary(file(content, "a.bin"))


def test_a_word_that_comes_again_in_the_binary_format_is_left_out(file):
    _, remarks = vectors_of(file(word2vec_binary(words=("the", "good", "the", ",", "</s>")), "a.bin"))
    assert remarks == ["1 words of the vectors came again, and were left out: the first of each counts"]

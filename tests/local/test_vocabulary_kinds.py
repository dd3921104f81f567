"""Tokenizers of every kind and tables of every architecture: any text goes in, valid text comes out."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapt.errors import CorpusError, VocabularyError
from rapt.local.mechanisms import make_mechanism
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.vocabulary_bundle import read_bundle, shorten_hash, write_bundle
from tokenizer_zoo import SPECIAL_TOKENS, ZOO, random_table

TEXTS = {
    "plain": "The film was good, and it's 2024.",
    "emoji": "so 🎉👩‍👩‍👧 good",
    "chinese": "你好，世界",
    "hebrew": "שלום עולם",
    "arabic": "مرحبا بالعالم \u202eabc\u202c",
    "combining": "e\u0301\u0301\u0301 naïve",
    "control": "a\x00b\x07c\x7fd\x85e",
    "invisible": "a\u200bb\ufeffc\u2028d",
    "private": "\ue000\U0010fffd\ufffe",
    "markup": "</s><pad> <unk> [CLS] [UNK] <|endoftext|> <extra_id_0> <0x41> ▁x Ġ",
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    return {kind: load_vocabulary(str(make(folder / kind))) for kind, make in ZOO.items()}


@pytest.fixture(params=ZOO)
def kind(request):
    return request.param


@pytest.fixture
def vocabulary(vocabularies, kind):
    return vocabularies[kind]


def privatized(vocabulary, text, *, eta):
    ids = vocabulary.encode([text])[0]
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    return mechanism.privatize(np.array(ids, dtype=np.int64), rng=insecure_stream(1).generator).tolist()


def test_the_table_is_the_models(vocabulary, kind):
    names = len(vocabulary._tokenizer.get_vocab())
    assert vocabulary.size == names + (5 if kind == "t5" else 0)
    np.testing.assert_array_equal(vocabulary.embeddings, random_table(vocabulary.size))
    assert vocabulary.model in (kind, f"model-{shorten_hash(vocabulary.hash)}")  # a folder has no public name
    assert max(vocabulary.eligible) < names  # rows that fill the table up have no token


def test_the_special_tokens_around_a_text_are_counted(vocabulary, kind):
    assert vocabulary.bundle.special_tokens == SPECIAL_TOKENS[kind]
    assert vocabulary.bundle.special_tokens == vocabulary._tokenizer.num_special_tokens_to_add(is_pair=False)
    assert vocabulary.bundle.max_tokens == (512 if kind == "t5" else 64)


def test_a_bundle_of_any_kind_is_written_and_read(vocabulary, tmp_path):
    write_bundle(vocabulary.bundle, tmp_path)
    again = read_bundle(tmp_path)
    assert (again.hash, again.special_tokens) == (vocabulary.hash, vocabulary.bundle.special_tokens)


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_goes_through_and_comes_out_as_valid_text(vocabulary, name):
    out = privatized(vocabulary, TEXTS[name], eta=1.0)
    assert out
    assert set(out) <= set(vocabulary.eligible.tolist())
    text = vocabulary.decode(out)
    assert "\ufffd" not in text
    assert text.encode("utf-8").decode("utf-8") == text


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_any_unicode_text_is_tokenized_and_read_back(vocabularies, text):
    for vocabulary in vocabularies.values():
        ids = vocabulary.encode([text])[0]
        assert all(0 <= token_id < vocabulary.size for token_id in ids)
        assert isinstance(vocabulary.decode(ids), str)
        vocabulary.tokens(ids)
    for exact in ("gpt2", "smollm2"):
        assert vocabularies[exact].decode(vocabularies[exact].encode([text])[0]) == text


@pytest.mark.parametrize("line", ["good film, " * 90_000, "x" * 1_000_000, "🎉" * 250_000])
def test_one_enormous_line_is_taken(vocabularies, line):
    for name in ("bert", "gpt2"):
        ids = vocabularies[name].encode([line])[0]
        assert len(ids) < len(line.encode()) + 1


def test_an_empty_text_has_no_tokens(vocabulary):
    assert vocabulary.encode([""]) == [[]]


def test_a_control_token_in_a_text_never_becomes_one(vocabulary):
    control, _ = vocabulary._control
    assert control
    assert control.isdisjoint(vocabulary.encode([TEXTS["markup"]])[0])


def test_a_written_control_token_of_unigram_is_unknown(vocabularies):
    t5 = vocabularies["t5"]
    assert "<unk>" in t5.tokens(t5.encode(["good </s> film"])[0])


def test_what_survives_is_what_is_documented(vocabularies):
    text = "A bad  film:\n2024 Une"
    seen = {name: v.decode(v.encode([text])[0]) for name, v in vocabularies.items()}
    assert seen["gpt2"] == seen["smollm2"] == seen["llama2"] == text
    assert seen["bert"] == "a bad film : 2024 une"
    assert seen["t5"] == text.replace("\n", "<unk>")


@pytest.mark.parametrize(
    ("kind", "never"),
    [
        ("bert", ["[PAD]", "[UNK]", "[CLS]"]),
        ("t5", ["<pad>", "</s>", "<unk>", "<extra_id_0>"]),
        ("gpt2", ["<|endoftext|>", "Ã", "ð", "Ā"]),  # special; first bytes of longer characters; the byte 0
        ("smollm2", ["<|im_end|>", "<|tool|>", "ÿ"]),
        ("llama2", ["<unk>", "<s>", "<0x41>", "<0xF0>"]),
    ],
    indirect=["kind"],
)
def test_what_would_mark_a_text_is_never_an_output(vocabulary, never):
    ids = [vocabulary._tokenizer.token_to_id(token) for token in never]
    assert None not in ids
    assert not set(ids) & set(vocabulary.eligible.tolist())


def test_ordinary_tokens_are_outputs(vocabularies):
    for name, tokens in {"gpt2": ["Ċ", "Ġ", "a", "Ã¤"], "smollm2": ["    ", "7"], "llama2": ["▁the", "a"]}.items():
        ids = [vocabularies[name]._tokenizer.token_to_id(token) for token in tokens]
        assert set(ids) - {None} <= set(vocabularies[name].eligible.tolist())
        assert len(set(ids) - {None}) >= len(tokens) - 1


def test_every_output_of_a_byte_level_tokenizer_is_text_alone(vocabularies):
    for name in ("gpt2", "smollm2"):
        assert all("\ufffd" not in vocabularies[name].decode([i]) for i in vocabularies[name].eligible.tolist())


def test_a_tokenizer_larger_than_its_table_is_refused_before_a_text_is_read(tmp_path):
    from safetensors.numpy import save_file

    folder = ZOO["gpt2"](tmp_path / "cut")
    save_file({"wte.weight": random_table(200)}, folder / "model.safetensors")
    with pytest.raises(VocabularyError, match=r"must fit its embedding table, got ids up to \d+ for 200 rows"):
        load_vocabulary(str(folder))


def test_a_tokenizer_that_cannot_take_a_text_is_named_without_it(vocabularies):
    import json
    from dataclasses import replace

    t5 = vocabularies["t5"]
    described = json.loads(t5.bundle.tokenizer_json)
    described["model"]["unk_id"] = None
    without = replace(t5, bundle=replace(t5.bundle, tokenizer_json=json.dumps(described).encode()))
    with pytest.raises(VocabularyError, match="must take any text") as caught:
        without.encode(["secretword 你"])
    assert "secretword" not in str(caught.value)


@pytest.mark.parametrize("name", TEXTS)
def test_spans_ascend_within_the_text_one_a_token(vocabulary, name):
    text = TEXTS[name]
    spans = vocabulary.spans([text])[0]
    assert len(spans) == len(vocabulary.encode([text])[0])
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)


def test_spans_hold_the_words_that_tokens_are_made_of(vocabulary):
    text = "The film was good,  and it's 2024."
    spans = vocabulary.spans([text])[0]
    covered = {place for start, end in spans for place in range(start, end)}
    assert "".join(text[place] for place in range(len(text)) if place not in covered).strip() == ""
    # One token cut out of the text by its span is that token again.
    for token_id, (start, end) in zip(vocabulary.encode([text])[0], spans, strict=True):
        written = vocabulary.decode([token_id]).removeprefix("##").strip()
        if written:  # SentencePiece's mark of a word's beginning takes the span of its first letter
            assert written.lower() == text[start:end].strip().lower()


def test_a_text_with_a_lone_surrogate_has_no_spans(vocabulary):
    with pytest.raises(CorpusError, match="record 4 must be valid unicode text"):
        vocabulary.spans(["\ud800"], first_position=3)

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from rapt.errors import VocabularyError, WireError
from rapt.public_models import PUBLIC_MODELS, find_model_folder
from rapt.wire.model_files import find_eligible_ids
from rapt.wire.vocabulary_bundle import (
    check_hash,
    make_bundle,
    read_bundle,
    read_model_bundle,
    shorten_hash,
    write_bundle,
)
from toy_vocabularies import toy_vocabulary

TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)


@pytest.fixture
def bundle():
    return toy_vocabulary(TABLE, special=(9, 0)).bundle


def test_what_was_written_is_read(bundle, tmp_path):
    write_bundle(bundle, tmp_path / "new" / "folder")
    again = read_bundle(tmp_path / "new" / "folder")
    assert (again.hash, again.model, again.max_tokens) == (bundle.hash, "toy", 64)
    assert (again.embeddings == TABLE).all()
    assert again.eligible.tolist() == bundle.eligible.tolist() == list(range(1, 9))
    assert not again.embeddings.flags.writeable
    # A service that runs as somebody else reads all three, or none.
    assert len({path.stat().st_mode for path in (tmp_path / "new" / "folder").iterdir()}) == 1


def test_a_table_takes_half_the_bytes_where_that_loses_nothing_and_has_the_same_hash(bundle, tmp_path):
    fine = toy_vocabulary(TABLE + np.float32(2**-20), special=(9, 0)).bundle
    for made, bytes_a_number in ((bundle, 2), (fine, 4)):
        folder = tmp_path / str(bytes_a_number)
        write_bundle(made, folder)
        assert read_bundle(folder).hash == made.hash
        path = folder / "embeddings.safetensors"
        assert 0 <= path.stat().st_size - bytes_a_number * TABLE.size < 200
        assert (load_file(path)["embeddings"].float().numpy() == made.embeddings).all()


def test_the_hash_covers_table_tokenizer_and_limit_but_not_the_name(bundle):
    same = {"tokenizer_json": bundle.tokenizer_json, "embeddings": bundle.embeddings, "max_tokens": 64}
    assert make_bundle(model="other", **same).hash == bundle.hash
    table = TABLE.copy()
    table[3, 1] = np.nextafter(table[3, 1], np.float32(np.inf))
    assert make_bundle(model="toy", **{**same, "embeddings": table}).hash != bundle.hash
    assert make_bundle(model="toy", **{**same, "max_tokens": 65}).hash != bundle.hash
    assert make_bundle(model="toy", **{**same, "tokenizer_json": bundle.tokenizer_json + b" "}).hash != bundle.hash


def test_another_vocabulary_is_refused_with_both_hashes_in_short(bundle):
    check_hash(bundle, expected=bundle.hash)
    with pytest.raises(VocabularyError, match=f"got {shorten_hash(bundle.hash)}, promised abababababab"):
        check_hash(bundle, expected="sha256:" + "ab" * 32)


def test_a_changed_table_is_noticed(bundle, tmp_path):
    write_bundle(bundle, tmp_path)
    save_file({"embeddings": TABLE + 1}, tmp_path / "embeddings.safetensors")
    with pytest.raises(VocabularyError, match="hashes must be equal"):
        read_bundle(tmp_path)


def test_a_changed_list_of_eligible_ids_is_noticed(bundle, tmp_path):
    write_bundle(bundle, tmp_path)
    described = json.loads((tmp_path / "vocabulary.json").read_text())
    (tmp_path / "vocabulary.json").write_text(json.dumps({**described, "eligible": [0, 9]}))
    with pytest.raises(VocabularyError, match="must list the eligible ids of its tokenizer"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("missing", ["vocabulary.json", "tokenizer.json", "embeddings.safetensors"])
def test_a_bundle_without_one_of_its_files_is_refused(bundle, tmp_path, missing):
    write_bundle(bundle, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(VocabularyError, match="a vocabulary bundle must have"):
        read_bundle(tmp_path)


def test_a_damaged_table_is_refused(bundle, tmp_path):
    write_bundle(bundle, tmp_path)
    (tmp_path / "embeddings.safetensors").write_bytes(b"damaged")
    with pytest.raises(VocabularyError, match="a vocabulary bundle must have"):
        read_bundle(tmp_path)


def test_a_field_that_nobody_knows_is_refused(bundle, tmp_path):
    write_bundle(bundle, tmp_path)
    described = json.loads((tmp_path / "vocabulary.json").read_text())
    (tmp_path / "vocabulary.json").write_text(json.dumps({**described, "surprise": 1}))
    with pytest.raises(WireError, match="has a field this version does not know"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("table", [TABLE.astype(np.float64), TABLE[0], np.full((10, 2), np.nan, dtype=np.float32)])
def test_a_table_that_is_not_finite_float32_rows_is_refused(bundle, table):
    with pytest.raises(VocabularyError, match="an embedding table must be finite float32"):
        make_bundle(model="toy", tokenizer_json=bundle.tokenizer_json, embeddings=table, max_tokens=64)


def test_special_and_unused_tokens_and_tokens_without_a_row_are_not_eligible():
    tokenizer = json.dumps(
        {
            "added_tokens": [
                {"id": 0, "content": "[UNK]", "special": True},
                {"id": 5, "content": "added", "special": False},
            ],
            "model": {"vocab": {"[UNK]": 0, "[unused7]": 1, "<extra_id_3>": 2, "word": 3, "##s": 4, "beyond": 6}},
        }
    ).encode()
    assert find_eligible_ids(tokenizer, rows=6).tolist() == [3, 4, 5]
    with pytest.raises(VocabularyError, match="at least one eligible token, got rows=3"):
        find_eligible_ids(tokenizer, rows=3)


@pytest.mark.parametrize("tokenizer", [b"", b"[]", b"{}", b'{"model": {"vocab": 3}}'])
def test_a_tokenizer_that_is_none_is_refused(tokenizer):
    with pytest.raises(VocabularyError, match=r"tokenizer\.json must be a Hugging Face tokenizer"):
        find_eligible_ids(tokenizer, rows=3)


@pytest.mark.parametrize("model", [name for name, public in PUBLIC_MODELS.items() if public.gguf is None])
def test_public_models_are_on_this_machine(model):
    bundle = read_model_bundle(find_model_folder(model), model=model)
    assert bundle.embeddings.shape[0] == 30522
    assert len(bundle.eligible) == 29523
    assert {0, 1, 100, 101, 102, 103}.isdisjoint(bundle.eligible.tolist())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match=r"must have config\.json, tokenizer\.json and model\.safetensors"):
        read_model_bundle(tmp_path, model="mine")
    with pytest.raises(VocabularyError, match="a model must be a known name or a folder"):
        find_model_folder(str(tmp_path))

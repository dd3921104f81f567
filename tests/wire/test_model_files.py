import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapt.errors import VocabularyError
from rapt.wire.model_files import find_table_name, read_table
from tokenizer_zoo import random_table, write_bfloat16

TABLE = random_table(11)
NAME = "model.embed_tokens.weight"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_table_of_any_width_of_number_is_read_as_float32(tmp_path, dtype):
    table = TABLE.astype(dtype)
    save_file({"other": np.zeros((2, 2)), NAME: table}, tmp_path / "model.safetensors")
    found = read_table(tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, table.astype(np.float32))


def test_bfloat16_is_widened_as_torch_does_it(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    table = torch.randn(300, 7, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    save_torch_file({NAME: table}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(read_table(tmp_path), table.float().numpy())


def test_a_table_larger_than_a_block_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("rapt.wire.model_files._BLOCK_ITEMS", 13)
    write_bfloat16(tmp_path / "model.safetensors", {"a": np.ones((3, 3)), NAME: TABLE})
    np.testing.assert_array_equal(read_table(tmp_path), TABLE)


def test_the_shared_table_goes_before_its_copies():
    assert (
        find_table_name(["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight"])
        == "shared.weight"
    )
    assert (
        find_table_name(["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]) == "encoder.embed_tokens.weight"
    )
    assert find_table_name(["h.0.attn.weight", "wte.weight", "wpe.weight"]) == "wte.weight"
    assert find_table_name(["distilbert.embeddings.word_embeddings.weight"]).startswith("distilbert")


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "under a known name"), (["newte.weight"], "under a known name"), (["a.wte.weight", "b.wte.weight"], "got 2")],
)
def test_no_table_and_two_tables_are_refused(names, message):
    with pytest.raises(VocabularyError, match=message):
        find_table_name(names)


def file_of(entry, *, data=b"\0" * 16, name=NAME):
    header = json.dumps({name: entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def test_the_file_made_by_hand_is_good(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_of(GOOD))
    assert read_table(tmp_path).shape == (2, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        b"\xff" * 8 + b"{}",
        (2**63).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b"{}",
        file_of(GOOD)[:-1],
        file_of({**GOOD, "data_offsets": [0, 17]}),
        file_of({**GOOD, "data_offsets": [4, 20]}),
        file_of({**GOOD, "data_offsets": [16, 0]}),
        file_of({**GOOD, "data_offsets": [-16, 0]}),
        file_of({**GOOD, "data_offsets": [0, 16, 3]}),
        file_of({**GOOD, "data_offsets": [0.0, 16.0]}),
        file_of({**GOOD, "shape": [10**9, 10**9]}),
        file_of({**GOOD, "shape": [-2, -2]}),
        file_of({**GOOD, "shape": [True, 4]}),
        file_of({**GOOD, "shape": "22"}),
        file_of({"dtype": "F32"}),
        file_of({**GOOD, "dtype": ["F32"]}),
        file_of([1]),
        file_of(None),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(VocabularyError, match="whole safetensors file"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [{**GOOD, "dtype": "I8"}, {**GOOD, "shape": [4]}, {**GOOD, "shape": [0, 4]}],
)
def test_a_table_of_another_kind_is_refused(tmp_path, entry):
    (tmp_path / "model.safetensors").write_bytes(file_of(entry))
    with pytest.raises(VocabularyError, match="must be rows of F64, F32, F16, BF16"):
        read_table(tmp_path)


def shard(folder, weight_map):
    save_file({NAME: TABLE}, folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_table_in_a_shard_is_found(tmp_path):
    shard(tmp_path, {NAME: "part.safetensors", "other": "missing.safetensors"})
    np.testing.assert_array_equal(read_table(tmp_path), TABLE)


@pytest.mark.parametrize(
    "weight_map", [{NAME: "../part.safetensors"}, {NAME: "/etc/passwd"}, {NAME: ""}, {NAME: ".."}, {NAME: 3}, [1], None]
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, weight_map):
    shard(tmp_path, weight_map)
    with pytest.raises(VocabularyError, match="must map each weight to a file beside it"):
        read_table(tmp_path)


def test_a_shard_without_the_promised_table_is_refused(tmp_path):
    shard(tmp_path, {"x.wte.weight": "part.safetensors"})
    with pytest.raises(VocabularyError, match="must hold the table that the index promises"):
        read_table(tmp_path)

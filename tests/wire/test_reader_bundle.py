"""A reader's files are read as they were written, and nothing else is: sizes, types, numbers, hashes, its codebook."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from code_material import code_bundle, reader_parts
from rapt.errors import RaptError, VocabularyError, WireError
from rapt.wire.code_bundle import read_code_bundle, write_code_files
from rapt.wire.reader_bundle import DESCRIPTION, TENSORS, make_reader_bundle, read_reader_bundle, write_reader_bundle


@pytest.fixture
def folder(tmp_path):
    write_reader_bundle(make_reader_bundle(**reader_parts(code_bundle())), tmp_path / "reader")
    return tmp_path / "reader"


def test_a_reader_is_read_as_it_was_written_and_its_folder_is_a_code_bundle_too(folder):
    made, found = make_reader_bundle(**reader_parts(code_bundle())), read_reader_bundle(folder)
    assert (found.hash, found.epsilons, found.measures, found.model) == (
        made.hash, made.epsilons, made.measures, made.model,
    )  # fmt: skip
    assert all(np.array_equal(found.tensors[name], item) for name, item in made.tensors.items())
    assert read_code_bundle(folder).hash == made.code.hash


def test_the_hash_is_of_everything_that_decides_a_vector():
    parts = reader_parts(code_bundle())
    weight = {**parts["tensors"], "hidden.bias": parts["tensors"]["hidden.bias"] + 1}
    others = [{"tensors": weight}, {"attenuations": (0.2, 0.75)}, {"epsilons": (1.0, 5.0)}]
    others += [{"backbone_hash": "sha256:" + "00" * 32}, {"code": code_bundle(seed=7)}]
    hashes = {make_reader_bundle(**parts | change).hash for change in [{}, {"model": "renamed"}, *others]}
    assert len(hashes) == 1 + len(others)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilons": (4.0, 1.0)},
        {"epsilons": (1.0, float("nan"))},
        {"attenuations": (0.5,)},
        {"attenuations": (0.5, 1.5)},
        {"vectors": 0},
        {"vectors": 65},
        {"backbone_hash": "none"},
        {"code": code_bundle(run=4)},
    ],
)
def test_what_no_training_leaves_is_refused(change):
    with pytest.raises(VocabularyError):
        make_reader_bundle(**reader_parts(code_bundle()) | change)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_numbers_that_a_forward_pass_would_not_survive_are_refused(value):
    parts = reader_parts(code_bundle())
    parts["tensors"]["output.bias"][3] = value
    with pytest.raises(VocabularyError, match=r"output\.bias"):
        make_reader_bundle(**parts)


def rewrite(folder, change):
    described = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(described | change))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "rapt.reader/2"},
        {"vectors": 10**9},
        {"vectors": 2},
        {"epsilons": [1.0] * 1000},
        {"epsilons": ["1", "4"]},
        {"attenuations": [0.25, 0.7]},
        {"measures": [[1.0, 2.0]]},
        {"hash": "sha256:" + "0" * 64},
        {"more": 1},
    ],
)
def test_a_description_of_something_else_is_refused_in_one_line(folder, change):
    rewrite(folder, change)
    with pytest.raises((WireError, VocabularyError)) as error:
        read_reader_bundle(folder)
    assert "\n" not in str(error.value)


def test_a_reader_beside_another_codebook_is_refused_by_hash(folder):
    write_code_files(code_bundle(seed=9), folder)
    with pytest.raises(VocabularyError, match="codebook beside it"):
        read_reader_bundle(folder)


@pytest.mark.parametrize("damage", ["doubles", "one_more", "wide", "cut", "gone"])
def test_tensors_of_another_kind_size_or_number_are_refused(folder, damage):
    tensors = dict(reader_parts(code_bundle())["tensors"])
    if damage == "doubles":
        tensors["plain"] = tensors["plain"].astype(np.float64)
    elif damage == "one_more":
        tensors["more"] = tensors["plain"]
    elif damage == "wide":
        tensors["hidden.weight"] = np.zeros((5, 70), np.float32)
    save_file(tensors, folder / TENSORS)
    if damage == "cut":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-4])
    elif damage == "gone":
        (folder / TENSORS).unlink()
    with pytest.raises(RaptError):
        read_reader_bundle(folder)

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from code_material import ENCODER_HASH, code_bundle, code_parts
from hostile_documents import mutations_of, value_or_refusal
from rapt.errors import UsageError, VocabularyError, WireError
from rapt.wire.code_bundle import (
    describe_code_bundle,
    holds_code_bundle,
    make_code_bundle,
    project_states,
    read_code_bundle,
    write_code_bundle,
)


@pytest.mark.parametrize("codes", [1, 2])
def test_what_was_written_is_read(tmp_path, codes):
    bundle = code_bundle(codes=codes)
    write_code_bundle(bundle, tmp_path / "new" / "code")
    again = read_code_bundle(tmp_path / "new" / "code")
    assert (again.hash, again.model, again.encoder_hash) == (bundle.hash, "tiny-encoder", ENCODER_HASH)
    assert (again.max_tokens, again.languages, again.codes, again.size) == (16, ("en",), codes, 12)
    for name in ("center", "directions", "codewords"):
        assert (getattr(again, name) == getattr(bundle, name)).all()
        assert not getattr(again, name).flags.writeable
    assert holds_code_bundle(tmp_path / "new" / "code")
    assert not holds_code_bundle(tmp_path)


def test_a_bundle_keeps_no_view_of_what_it_was_made_from():
    parts = code_parts()
    bundle = make_code_bundle(**parts)
    parts["center"][0] += 1
    assert bundle.center[0] == code_parts()["center"][0]


@pytest.mark.parametrize("part", ["encoder_hash", "center", "directions", "codewords", "max_tokens", "languages"])
def test_the_hash_covers_every_part_but_the_name(part):
    parts = code_parts()
    assert make_code_bundle(**{**parts, "model": "another name"}).hash == code_bundle().hash
    if part in ("center", "directions", "codewords"):
        changed = np.nextafter(parts[part], np.float32(np.inf))
    else:
        changed = {"encoder_hash": "sha256:" + "00" * 32, "max_tokens": 17, "languages": ("en", "de")}[part]
    assert make_code_bundle(**{**parts, part: changed}).hash != code_bundle().hash


def test_numbers_that_move_from_one_array_to_the_next_change_the_hash():
    same = np.eye(4, dtype=np.float32)
    parts = {**code_parts(), "center": np.zeros(4, np.float32)}
    one = make_code_bundle(**{**parts, "directions": same[:2], "codewords": np.stack([same[:, :2][:2]])})
    two = make_code_bundle(**{**parts, "directions": same[:2], "codewords": np.stack([same[:, :2][:2][::-1]])})
    assert one.hash != two.hash


@pytest.mark.parametrize(
    ("part", "bad"),
    [
        ("center", np.zeros((1, 6), np.float32)),
        ("center", np.full(6, np.nan, np.float32)),
        ("center", np.zeros(5, np.float32)),
        ("center", np.zeros(6)),
        ("directions", np.full((3, 6), np.inf, np.float32)),
        ("directions", np.ones((4, 6), np.float32)),
        ("codewords", code_parts()["codewords"][0]),
        ("codewords", code_parts()["codewords"] * np.float32(1.01)),
        ("codewords", code_parts()["codewords"][:, :1]),
        ("codewords", np.repeat(code_parts()["codewords"], 2, axis=1)),
        ("codewords", np.array([[[1, 0, 0], [1, -0.0, 0]]], np.float32)),
        ("codewords", np.ones((1, 65_537, 1), np.float32)),
        ("codewords", np.zeros((0, 2, 3), np.float32)),
        ("max_tokens", 0),
        ("encoder_hash", "sha256:short"),
    ],
)
def test_a_code_that_is_none_is_refused_in_one_line(part, bad):
    with pytest.raises(VocabularyError, match="code") as refused:
        make_code_bundle(**{**code_parts(), part: bad})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["code.json", "code.safetensors"])
def test_a_bundle_without_one_of_its_files_is_refused(tmp_path, missing):
    write_code_bundle(code_bundle(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(VocabularyError, match=r"must have code\.json and code\.safetensors"):
        read_code_bundle(tmp_path)


def test_a_changed_codeword_is_noticed(tmp_path):
    write_code_bundle(code_bundle(), tmp_path)
    arrays = load_file(tmp_path / "code.safetensors")
    arrays["codewords"] = np.nextafter(arrays["codewords"], np.float32(0))
    save_file(arrays, tmp_path / "code.safetensors")
    with pytest.raises(VocabularyError, match="one of the two was changed or damaged"):
        read_code_bundle(tmp_path)


@pytest.mark.parametrize("change", ["another type", "one array more", "one array less", "no safetensors"])
def test_arrays_of_another_kind_are_refused(tmp_path, change):
    write_code_bundle(code_bundle(), tmp_path)
    arrays = load_file(tmp_path / "code.safetensors")
    if change == "another type":
        arrays["center"] = arrays["center"].astype(np.float64)
    elif change == "one array more":
        arrays["surprise"] = arrays["center"]
    elif change == "one array less":
        del arrays["center"]
    save_file(arrays, tmp_path / "code.safetensors")
    if change == "no safetensors":
        (tmp_path / "code.safetensors").write_bytes(b"damaged")
    with pytest.raises(VocabularyError, match=r"code\.safetensors"):
        read_code_bundle(tmp_path)


def test_a_description_of_another_version_is_refused(tmp_path):
    write_code_bundle(code_bundle(), tmp_path)
    (tmp_path / "code.json").write_text(json.dumps({**describe_code_bundle(code_bundle()), "schema": "rapt.code/9"}))
    with pytest.raises(WireError, match="upgrade rapt or fetch the bundle again"):
        read_code_bundle(tmp_path)


def test_a_bundle_is_not_written_over_other_files(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UsageError, match="must be new"):
        write_code_bundle(code_bundle(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@given(mutations_of(describe_code_bundle(code_bundle())))
def test_a_description_bent_in_any_way_is_the_same_bundle_or_refused(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp() / "bent"
    if not folder.exists():
        write_code_bundle(code_bundle(), folder)
    (folder / "code.json").write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
    bundle = value_or_refusal(lambda: read_code_bundle(folder))
    assert bundle is None or bundle.hash == code_bundle().hash


@given(st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_a_code_has_length_1_or_is_0_whatever_the_state_is(state):
    code = project_states(np.array([state], np.float32), code_bundle())
    assert code.shape == (1, 3)
    assert np.isfinite(code).all()
    assert np.linalg.norm(code) == pytest.approx(1, abs=1e-12) or not code.any()


def test_a_code_is_the_projection_of_the_centred_state():
    bundle, state = code_bundle(), np.arange(6, dtype=np.float32)
    by_hand = [
        sum(float(direction[i]) * (float(state[i]) - float(bundle.center[i])) for i in range(6))
        for direction in bundle.directions
    ]
    found = project_states(state[None], bundle)[0]
    assert found == pytest.approx(np.array(by_hand) / np.linalg.norm(by_hand), abs=1e-12)
    assert not project_states(bundle.center[None], bundle).any()

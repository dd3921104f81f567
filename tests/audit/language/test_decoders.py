"""Which language model an attacker asks: the largest at hand that memory and time allow, or the one that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from rapt.audit.language.decoders import choose_decoder, find_decoder, list_decoders
from rapt.errors import VocabularyError
from tiny_backbones import write_family, write_tiny_model

COMMIT = 40 * "0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache of the hub with two decoders, one of an unknown family, an encoder, and one that is not whole."""
    folder = tmp_path_factory.mktemp("hub")

    def snapshot(name: str) -> Path:
        cached = folder / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        return cached / "snapshots" / COMMIT

    write_family("qwen2", snapshot("maker/some-qwen"))
    for name in ("some-gpt", "stranger", "broken"):
        snapshot(name).mkdir(parents=True)
        write_tiny_model("gpt2", snapshot_of(folder, name))
    snapshot("encoder").mkdir(parents=True)
    write_tiny_model("bert", snapshot_of(folder, "encoder"))
    config = snapshot_of(folder, "stranger") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "stranger"}))
    (snapshot_of(folder, "broken") / "model.safetensors").write_bytes(b"\xff" * 100)
    return folder


def snapshot_of(folder: Path, name: str) -> Path:
    return folder / f"models--{name}" / "snapshots" / COMMIT


@pytest.fixture(autouse=True)
def machine(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("RAPT_MODELS", raising=False)


def count(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        return sum(tensors.get_tensor(name).size for name in tensors.keys())


def test_decoders_of_known_families_are_found_with_their_size(cache, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    write_tiny_model("llama", own)
    monkeypatch.setenv("RAPT_MODELS", f"minilm, {own}, some-gpt, {tmp_path / 'nowhere'}")
    found = {decoder.model: decoder.parameters for decoder in list_decoders()}
    assert found.pop("smollm2", 135e6) == pytest.approx(135e6, rel=0.25)  # where its weights are installed
    assert found == {
        str(own): count(own),
        "some-gpt": count(find_decoder("some-gpt")),
        "maker/some-qwen": count(find_decoder("maker/some-qwen")),
    }


def test_the_largest_that_fits_is_chosen_and_why_is_said():
    sizes = {model: find.parameters for find in list_decoders() if (model := find.model) != "smollm2"}
    ordered = sorted(sizes, key=sizes.__getitem__)
    few = int(7.9e12 / sizes[ordered[-1]] / 1.01)  # tokens that the largest of these can just be asked about
    chosen = choose_decoder(None, tokens=few)
    assert (chosen.model, chosen.parameters) == (ordered[-1], sizes[ordered[-1]])
    assert "on this machine" in chosen.described
    smaller = choose_decoder("auto", tokens=int(few * 1.03))
    assert smaller.model == ordered[-2]
    assert "too large for half of the free memory or an hour of processor time" in smaller.described
    with pytest.raises(VocabularyError, match="attack less with `limit`"):
        choose_decoder(None, tokens=10**12)


def test_a_decoder_that_is_named_is_taken_and_none_is_none(cache):
    named = choose_decoder(str(snapshot_of(cache, "stranger")), tokens=10**12)
    assert named.described.endswith("million parameters; it was named")
    assert str(cache) not in named.described
    assert choose_decoder(named, tokens=1) is named
    assert named.digest != choose_decoder("some-gpt", tokens=1).digest
    with pytest.raises(VocabularyError, match="no language model was to be asked"):
        choose_decoder("none", tokens=1)
    with pytest.raises(VocabularyError, match="must be a decoder"):
        choose_decoder("encoder", tokens=1)
    with pytest.raises(VocabularyError, match=r"damaged|header"):
        choose_decoder("broken", tokens=1)

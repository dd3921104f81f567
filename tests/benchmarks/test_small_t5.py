"""The recipe of the small T5: span corruption as a law, and a model of a few steps that is a whole backbone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parents[2] / "benchmarks" / "small_t5.py"
    spec = importlib.util.spec_from_file_location("small_t5", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def restored(recipe, inputs, targets):
    """The text, its spans put back where their sentinels stand."""
    first, past = 3, 3 + recipe.SENTINELS
    spans, current = {}, None
    for token in targets[:-1]:
        if first <= token < past:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    text = [part for token in inputs[:-1] for part in (spans[token] if first <= token < past else [token])]
    return text, spans


@pytest.mark.parametrize("length", [2, 3, 4, 7, 20, 64, 128])
def test_nothing_of_a_text_is_lost_and_some_of_it_is_hidden(recipe, length):
    rng = np.random.default_rng(length)
    for _ in range(50):
        ids = rng.integers(3 + recipe.SENTINELS, 8_000, size=length).tolist()
        inputs, targets = recipe.corrupt(ids, rng)
        assert inputs[-1] == targets[-1] == recipe.EOS
        text, spans = restored(recipe, inputs, targets)
        assert text == ids
        hidden = sum(map(len, spans.values()))
        assert hidden == min(length - 1, max(1, round(0.15 * length)))
        # The sentinels count up, in both, and one more closes the targets.
        used = [token for token in inputs if token < 3 + recipe.SENTINELS and token != recipe.EOS]
        assert used == list(range(3, 3 + len(used)))
        assert list(spans) == [*used, 3 + len(used)]
        assert all(spans[token] for token in used)


def test_both_ends_of_a_text_are_hidden_at_times(recipe):
    rng, ids = np.random.default_rng(0), list(range(200, 220))
    inputs = [recipe.corrupt(ids, rng)[0] for _ in range(60)]
    assert {row[0] == 3 for row in inputs} == {True, False}
    assert {row[-2] < 3 + recipe.SENTINELS for row in inputs} == {True, False}


def test_a_run_of_seconds_writes_a_backbone_with_its_figures(recipe, tmp_path):
    words = ["good", "bad", "film", "actor", "story", "slow", "long", "laughed"]
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, size=12)) for _ in range(1_300)]
    figures = recipe.train(texts, tmp_path / "t5", minutes=0.03, seed=0, width=16)
    assert figures["steps"] > 0
    assert figures["held_out"] == recipe.HELD_OUT
    assert {path.name for path in tmp_path.iterdir()} == {"t5"}
    backbone = load_backbone(str(tmp_path / "t5"), precision="float32", device="cpu")
    assert backbone.kind == "encoder-decoder"
    assert (backbone.frame.end, backbone.frame.sentinel_id, backbone.frame.decoder_start) == ((1,), 3, (0,))
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[backbone.tokenize("good film")])
    assert encode_with_prompts(backbone, layout, None).isfinite().all()

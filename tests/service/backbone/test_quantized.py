"""Frozen weights in 8 or 4 bits: near the whole ones, tuned, resumed to the same bits, and asked in mixed batches."""

from dataclasses import replace

import pytest
import torch

from rapt.errors import TuningError, UsageError
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.answers.decoding import check_cached_writing
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone import library
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from tiny_backbones import write_family, write_tiny_model
from tuning_material import few_words_file, tune_stop_and_resume

WIDE = {"hidden_size": 64, "head_dim": 16}
CASES = {
    ("bert", "8bit"): None,
    ("gpt2", "8bit"): None,
    ("roberta", "4bit"): {"hidden_size": 64},
    ("t5-flan", "4bit"): {"d_model": 64, "d_kv": 16},
    ("llama-3", "4bit"): WIDE,
    ("qwen3", "4bit"): WIDE,
}


def test_without_the_package_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="run: pip install bitsandbytes accelerate"):
        load_backbone(str(write_tiny_model("bert", tmp_path / "bert")), precision="float32", weights="4bit")


def test_four_bits_are_refused_where_the_package_would_read_them_wrongly(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")
    with pytest.raises(UsageError, match="needs linear layers that read a multiple of 64 numbers, got 32 in"):
        load_backbone(str(write_tiny_model("bert", tmp_path / "bert")), precision="float32", weights="4bit")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request, tmp_path_factory):
    """A backbone with whole weights, and the same in few bits."""
    pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")
    family, weights = request.param
    folder = tmp_path_factory.mktemp("few") / family
    changes = CASES[request.param]
    folder = write_tiny_model(family, folder) if changes is None else write_family(family, folder, **changes)
    whole = load_backbone(str(folder), precision="float32", device="cpu")
    return whole, load_backbone(str(folder), precision="float32", device="cpu", weights=weights)


def layers_of(backbone):
    """Return the linear layers of a model by name, but the head."""
    layers = dict(backbone.sites.model.named_modules())
    return {name: layers[name] for name in backbone.sites.linear if not name.endswith("lm_head")}


def weights_of(layer, inputs):
    """What a layer makes of unit vectors: its weights, however it keeps them."""
    zero, units = layer(torch.zeros(1, inputs)), layer(torch.eye(inputs))
    return (units - zero).detach()


def bytes_of(backbone):
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers_of(backbone).values())


def test_its_weights_are_nearly_the_same_in_a_part_of_the_memory(pair):
    whole, few = pair
    ours, theirs = layers_of(few), layers_of(whole)
    # A number of a bell curve is off by a tenth in NF4, and by 1 of 127 steps up to the largest of a row in 8 bits.
    bound = 0.02 if few.weights == "8bit" else 0.13
    apart = []
    for name, layer in ours.items():
        wanted = weights_of(theirs[name], whole.sites.linear[name][0])
        found = weights_of(layer, few.sites.linear[name][0])
        apart.append(float((found - wanted).norm() / wanted.norm()))
    assert max(apart) < bound
    assert sum(share > 0 for share in apart) > len(apart) / 2  # T5 keeps some layers whole
    assert bytes_of(few) < 0.5 * bytes_of(whole)
    assert few.own_forward is None
    assert few.bundle.hash == whole.bundle.hash
    assert list_methods(few) == list_methods(whole)
    if few.kind != "encoder":
        check_cached_writing(few)


def test_it_is_tuned_resumed_and_asked_among_others(pair):
    whole, few = pair
    file, adapters = few_words_file(few), []
    for method in list_methods(few):
        config = replace(make_default_config(method), prompt_length=2, epochs=4, batch_size=8)
        done, state = tune_stop_and_resume(few, file, config=config)
        with pytest.raises(TuningError, match="another precision"):
            tune(whole, file, config=config, resume_from=state)
        adapters.append(done)
    rows = [
        ClassificationRow(adapter=adapter, token_ids=record.token_ids)
        for record in file.records[:2]
        for adapter in adapters
    ]
    for row, together in zip(rows, classify(few, rows), strict=True):
        torch.testing.assert_close(
            torch.tensor(together),
            torch.tensor(classify(few, [row])[0]),
            atol=0.02 if few.weights == "8bit" else 1e-4,
            rtol=0,
        )

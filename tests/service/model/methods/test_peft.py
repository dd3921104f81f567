"""PEFT is the oracle: what it computes with an exported adapter is what we compute."""

import copy
import dataclasses
import warnings

import pytest
import torch

from rapt.service.model.adapter import load_adapter, save_adapter
from rapt.service.model.backbone import load_backbone
from rapt.service.model.steering import LoraPair, Tuned, steer
from rapt.service.model.tuner import tune
from rapt.service.model.tuning_config import default_config
from tuning_material import separable_file

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32", device="cpu")


@pytest.fixture(scope="module")
def batch(backbone):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2000, 20000, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask, torch.arange(9).expand(3, 9)


def bare(backbone):
    """The model alone, without our attention or our hooks."""
    model = copy.deepcopy(backbone.sites.model)
    model.set_attn_implementation("sdpa")
    for module in model.modules():
        module._forward_hooks.clear()
    return model


def with_peft(backbone, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a name that it renamed
        return peft.PeftModel.from_pretrained(bare(backbone), str(folder)).eval()


def tuned(backbone, method, folder):
    config = dataclasses.replace(default_config(method), prompt_length=4, epochs=2, batch_size=16)
    adapter = tune(backbone, separable_file(backbone), config=config)
    save_adapter(adapter, folder)
    return load_adapter(folder, backbone=backbone).tuned


def ours(backbone, rows, batch, *, shift=0):
    ids, mask, positions = batch
    return backbone.encode(
        backbone.embed(ids), attention_mask=mask, position_ids=positions + shift, steering=steer(rows)
    )


def test_a_tuned_lora_loads_in_plain_peft_and_computes_the_same(backbone, batch, tmp_path):
    adapter = tuned(backbone, "lora", tmp_path / "lora")
    ids, mask, positions = batch
    theirs = with_peft(backbone, tmp_path / "lora")(input_ids=ids, attention_mask=mask, position_ids=positions)
    mine = ours(backbone, [adapter] * 3, batch)
    torch.testing.assert_close(mine, theirs.last_hidden_state, atol=1e-5, rtol=0)
    assert not torch.allclose(mine, ours(backbone, [Tuned()] * 3, batch), atol=1e-3)  # it does something


def test_a_tuned_prefix_loads_in_plain_peft_which_shifts_the_text(backbone, batch, tmp_path):
    adapter = tuned(backbone, "prefix_tuning", tmp_path / "prefix")
    ids, mask, _ = batch
    theirs = with_peft(backbone, tmp_path / "prefix")(input_ids=ids, attention_mask=mask).last_hidden_state
    mine, real = ours(backbone, [adapter] * 3, batch, shift=4), batch[1].bool()  # ours computes no padding
    torch.testing.assert_close(mine[real], theirs[real], atol=1e-5, rtol=0)


def test_rows_of_different_loras_agree_with_peft_row_by_row(backbone, batch, tmp_path):
    first = tuned(backbone, "lora", tmp_path / "first")
    generator = torch.Generator().manual_seed(1)
    name = next(iter(first.lora))
    inputs, outputs = backbone.sites.linear[name]
    draw = [torch.randn(shape, generator=generator) / 10 for shape in ((3, inputs), (outputs, 3))]
    second = Tuned(lora={name: LoraPair(a=draw[0], b=draw[1])})  # another rank, one layer only
    mixed = ours(backbone, [first, second, Tuned()], batch)
    for row, adapter in enumerate([first, second, Tuned()]):
        torch.testing.assert_close(mixed[row], ours(backbone, [adapter] * 3, batch)[row], atol=1e-5, rtol=0)
    ids, mask, positions = batch
    theirs = with_peft(backbone, tmp_path / "first")(input_ids=ids, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(mixed[0], theirs.last_hidden_state[0], atol=1e-5, rtol=0)


def test_outside_of_a_steered_call_the_backbone_is_what_it_was(backbone, batch, tmp_path):
    ids, mask, positions = batch
    expected = bare(backbone)(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    ours(backbone, [tuned(backbone, "prefix_tuning", tmp_path / "prefix")] * 3, batch)
    after = backbone.encode(backbone.embed(ids), attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(after[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)

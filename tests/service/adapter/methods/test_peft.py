"""PEFT is the oracle: what it computes with an exported adapter is what we compute."""

import copy
import dataclasses
import warnings
from importlib.util import find_spec

import pytest
import torch

from closeness import assert_close
from rapt.service.adapter.adapter import load_adapter, save_adapter
from rapt.service.backbone.steering import LoraPair, Tuned, steer
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from tuning_material import separable_file

# Imported when it is needed, by the process that needs it: the import takes seconds.
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")


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


def with_peft(backbone, folder, batch, *, positions=True):
    """Last-layer states as plain PEFT computes them."""
    ids, mask, own = batch
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers has renamed
        model = pytest.importorskip("peft").PeftModel.from_pretrained(bare(backbone), str(folder)).eval()
        told = {"position_ids": own} if positions else {}
        return model(input_ids=ids, attention_mask=mask, **told).last_hidden_state


def tuned(backbone, method, folder):
    config = dataclasses.replace(make_default_config(method), prompt_length=4, epochs=2, batch_size=16)
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
    theirs = with_peft(backbone, tmp_path / "lora", batch)
    mine = ours(backbone, [adapter] * 3, batch)
    assert_close(mine, theirs, of=backbone)
    assert not torch.allclose(mine, ours(backbone, [Tuned()] * 3, batch), atol=1e-3)  # it does something


def test_a_tuned_prefix_loads_in_plain_peft_which_shifts_the_text(backbone, batch, tmp_path):
    adapter = tuned(backbone, "prefix_tuning", tmp_path / "prefix")
    theirs = with_peft(backbone, tmp_path / "prefix", batch, positions=False)
    mine, real = ours(backbone, [adapter] * 3, batch, shift=4), batch[1].bool()  # ours computes no padding
    assert_close(mine[real], theirs[real], of=backbone)


def test_rows_of_different_loras_agree_with_peft_row_by_row(backbone, batch, tmp_path):
    first = tuned(backbone, "lora", tmp_path / "first")
    generator = torch.Generator().manual_seed(1)
    name = next(iter(first.lora))
    inputs, outputs = backbone.sites.linear[name]
    draw = [torch.randn(shape, generator=generator) / 10 for shape in ((3, inputs), (outputs, 3))]
    second = Tuned(lora={name: LoraPair(a=draw[0], b=draw[1])})  # another rank, one layer only
    mixed = ours(backbone, [first, second, Tuned()], batch)
    for row, adapter in enumerate([first, second, Tuned()]):
        assert_close(mixed[row], ours(backbone, [adapter] * 3, batch)[row], of=backbone)
    theirs = with_peft(backbone, tmp_path / "first", batch)
    assert_close(mixed[0], theirs[0], of=backbone)


def test_outside_of_a_steered_call_the_backbone_is_what_it_was(backbone, batch, tmp_path):
    ids, mask, positions = batch
    expected = bare(backbone)(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    ours(backbone, [tuned(backbone, "prefix_tuning", tmp_path / "prefix")] * 3, batch)
    after = backbone.encode(backbone.embed(ids), attention_mask=mask, position_ids=positions)
    assert_close(after[mask.bool()], expected[mask.bool()], of=backbone)

"""Models on another device: what is asked for and is not there is refused, and a pass mixes no devices.

No GPU is needed: torch's `meta` device computes shapes alone, refuses to tell a number, and refuses sums and copies of
what lies elsewhere, as a GPU does (not products: a GPU refuses those too).
"""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import masking_utils

from rapt.errors import UsageError
from rapt.service.adapter.adapter import adapter_to_files
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.answers.decoding import check_cached_writing
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.layout import embed_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.placement import VARIABLE, choose_device, fill_in_turn, move_to
from rapt.service.backbone.steering import LoraPair, Tuned, steer
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import default_config
from tiny_backbones import TINY, tiny_backbone, write_family, write_tiny_model
from tuning_material import few_words_file

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@needs_no_gpu
def test_auto_is_what_the_environment_says_and_else_what_is_there(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_device("auto") == torch.device("cpu")
    for value in ("", "auto", "cpu"):
        monkeypatch.setenv(VARIABLE, value)
        assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setenv(VARIABLE, "cuda:1")
    with pytest.raises(UsageError, match="torch finds none"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(UsageError, match="a GPU was asked for"):
        choose_device(device)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:", "cuda:-1", "cuda:9999", "cpu\n", "CPU", "the patient"])
def test_what_is_no_device_is_refused_and_not_repeated(device):
    with pytest.raises(UsageError, match="must be auto, cpu, cuda or cuda:N") as error:
        choose_device(device)
    assert "patient" not in str(error.value)


class Full(nn.Linear):
    """A module for which a device has too little memory."""

    def to(self, *_args, **_rest):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_model_that_its_device_cannot_hold_is_refused_with_its_size():
    with pytest.raises(UsageError, match=r"must hold model='large', of 4 MiB"):
        move_to(torch.device("cpu"), Full(1024, 1024), model="large")


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_no_pass_mixes_devices(architecture, tmp_path, monkeypatch):
    # The library reads the mask to see whether it may leave it out, and not while it is traced: there is none to read.
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    here = tiny_backbone(architecture, tmp_path / architecture)  # of its own: it is moved
    for module in {here.sites.model, here.encoder, here.decoder, here.language_head} - {None}:
        module.to("meta")
    shift = None if here.segment_shift is None else here.segment_shift.to("meta")
    there = dataclasses.replace(
        here, word_embeddings=here.word_embeddings.to("meta"), own_forward=None, segment_shift=shift
    )
    name, (inner, outer) = next(iter(there.sites.linear.items()))
    prompt = torch.randn(3, there.embedding_size, device="meta", requires_grad=True)
    pair = LoraPair(a=torch.randn(2, inner, device="meta"), b=torch.randn(outer, 2, device="meta", requires_grad=True))
    steering = steer([Tuned(prompt=prompt), Tuned(lora={name: pair})])
    ids = [int(token) for token in there.bundle.eligible[5:12]]
    layout = lay_out(
        there,
        prompt_lengths=steering.prompt_lengths,
        privatized_plain_tokens=[(), ()],
        texts=[ids, ids[:3]],
        second_texts=[None, ids[:2]],
    )
    task = TASKS["classification"]

    def states(vectors):
        return there.encode(
            vectors,
            attention_mask=layout.attention_mask,
            position_ids=layout.position_ids,
            steering=steering,
        )

    found = states(embed_with_prompts(there, layout, steering.prompts))
    vectors = task.vectors(there, found, layout, steering=steering, compared=False)
    vectors.sum().backward()
    assert {found.device.type, vectors.device.type, prompt.grad.device.type, pair.b.grad.device.type} == {"meta"}
    # The twin: vectors that were left on the processor.
    with pytest.raises(RuntimeError, match=r"device|meta"):
        states(torch.randn(found.shape))


def test_devices_are_filled_in_turn():
    assert fill_in_turn([4, 4, 4, 4], [9, 8]) == [0, 0, 1, 1]
    assert fill_in_turn([4, 9, 1], [5, 9, 1]) == [0, 1, 2]  # layers keep their order
    assert fill_in_turn([4, 4, 4], [9, 3]) is None
    assert fill_in_turn([1], [-5, 2]) == [1]  # the main device may be full of tables


@needs_no_gpu
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must be auto, or a file with a JSON object"),
        ('{"a": 1, "a": 2}', "must be auto, or a file with a JSON object"),
        ('{"the patient": "disk"}', "must name layers of model='map', such as 'layers.0', got another name"),
        ('{"model.embed_tokens": "disk"}', "everything else stays on the main device"),
        ('{"model.layers.1": "cuda:1"}', "a GPU was asked for, and torch finds none"),
        ('{"model.layers.1": "the patient"}', "the device must be auto, cpu, cuda or cuda:N"),
        ('{"model.layers.1": 1}', "the device must be auto, cpu, cuda or cuda:N"),
        ("auto", "the device map auto is for GPUs, and the main device is cpu"),
        (None, "must be auto, or a file with a JSON object"),
    ],
)
def test_a_device_map_that_cannot_be_followed_is_refused_in_one_line(tmp_path, content, said):
    folder, path = write_tiny_model("llama", tmp_path / "map"), tmp_path / "map.json"
    if content not in (None, "auto"):
        path.write_text(content)
    chosen = content if content == "auto" else str(path)
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        load_backbone(str(folder), precision="float32", device="cpu", device_map=chosen)
    assert "patient" not in str(error.value)
    assert "\n" not in str(error.value)


def test_few_bits_and_a_map_do_not_go_together(tmp_path):
    with pytest.raises(UsageError, match="a device map spreads whole weights, got weights=4bit"):
        load_backbone(
            str(write_tiny_model("llama", tmp_path / "map")),
            precision="float32",
            device="cpu",
            weights="4bit",
            device_map="auto",
        )


@pytest.mark.parametrize("architecture", ["bert", "t5", "llama", "gpt2", "bart"])
def test_a_model_whose_layers_lie_on_disk_tunes_and_answers_to_the_same_bits(architecture, tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="the extra [processes] is not installed")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    write = write_tiny_model if architecture in TINY else write_family
    folder = write(architecture, tmp_path / architecture)
    whole = load_backbone(str(folder), precision="float32", device="cpu")
    layers = whole.sites.layers
    path = tmp_path / "map.json"
    path.write_text(json.dumps({layers[-1]: "disk", layers[0]: "cpu"}))
    spread_out = load_backbone(str(folder), precision="float32", device="cpu", device_map=str(path))
    last = spread_out.sites.model.get_submodule(layers[-1])
    assert {weight.device.type for weight in last.parameters()} == {"meta"}
    assert spread_out.own_forward is None
    plain = dataclasses.replace(whole, own_forward=None)
    file = few_words_file(spread_out, targets=spread_out.kind != "encoder")
    for method in list_methods(spread_out):
        config = dataclasses.replace(default_config(method), prompt_length=2, epochs=2, batch_size=8)
        tuned = tune(spread_out, file, config=config)
        assert adapter_to_files(tuned) == adapter_to_files(tune(plain, file, config=config))
        rows = [ClassificationRow(adapter=tuned, token_ids=record.token_ids) for record in file.records]
        assert torch.equal(torch.tensor(classify(spread_out, rows)), torch.tensor(classify(plain, rows)))
    if spread_out.kind != "encoder":
        check_cached_writing(spread_out)
    # Passes of several threads share a layer, whose weights come and go.
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: classify(spread_out, rows), range(8)):
            assert found == classify(plain, rows)

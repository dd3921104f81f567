"""Models on another device: what is asked for and is not there, or is too small, is refused in one line.

No GPU is needed: what torch says of one is put in its mouth. Whole runs on another device are in `test_pretend_gpu`.
"""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rapt.errors import UsageError
from rapt.service.adapter.adapter import adapter_to_files
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.answers.decoding import check_cached_writing
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone import placement
from rapt.service.backbone.opening import choose_dtype, load_backbone
from rapt.service.backbone.placement import (
    VARIABLE,
    choose_device,
    fill_in_turn,
    limit_gpu_memory,
    may_have_gpu,
    measure_half_of_gpu,
    move_to,
    send,
    share_gpus,
)
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from tiny_backbones import TINY, write_family, write_tiny_model
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


def test_a_driver_is_found_by_its_devices_where_torch_could_use_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "null").touch()
    assert not may_have_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert may_have_gpu(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not may_have_gpu(tmp_path)


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


class Gpus:
    """What torch says of GPUs, by device; this machine may have none, and asks nothing else of them."""

    def __init__(self, monkeypatch, *, free, whole, capability=(9, 0), reserved=0):
        self.shares = {}
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(cuda, "mem_get_info", lambda device: (free, whole))
        monkeypatch.setattr(cuda, "memory_reserved", lambda device: reserved)
        monkeypatch.setattr(cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(cuda, "set_per_process_memory_fraction", self._share)

    def _share(self, share, device):
        self.shares[device] = share


class OnGpu(nn.Module):
    """A model whose weights say that they are on a GPU."""

    def __init__(self, mebibytes):
        super().__init__()
        self.sizes = [SimpleNamespace(device=torch.device("cuda:0"), nbytes=mebibytes * 2**20)]

    def parameters(self, recurse=True):
        return iter(self.sizes)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: no kernel image is available for execution on the device\n"), "built for CUDA"),
        (RuntimeError("The NVIDIA driver on your system is too old\n(found version 9000)"), "and its driver"),
        (torch.OutOfMemoryError("CUDA out of memory"), "must have memory free, and others have all of it"),
    ],
    ids=["kernels", "driver", "memory"],
)
def test_a_gpu_that_does_not_compute_is_refused_in_one_line_before_anything_is_loaded(monkeypatch, error, said):
    Gpus(monkeypatch, free=0, whole=2**34)

    def fail(*_sizes, device):
        raise error

    placement._try_out.cache_clear()
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(UsageError, match=said) as refused:
        load_backbone("bert-tiny", device="cuda")
    assert "\n" not in str(refused.value)
    assert "install a torch for this GPU" in str(refused.value) or "take another device" in str(refused.value)


def test_the_precision_of_a_gpu_is_what_it_has_units_for(monkeypatch):
    gpu = torch.device("cuda:0")
    for capability, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        Gpus(monkeypatch, free=1, whole=2, capability=capability)
        assert choose_dtype("auto", gpu) == dtype
        assert choose_dtype("bfloat16", gpu) == torch.bfloat16


def test_a_gpu_is_shared_between_answers_and_jobs_or_refused_before_anything_is_served(monkeypatch):
    gibibyte = 2**30
    gpus = Gpus(monkeypatch, free=10 * gibibyte, whole=16 * gibibyte, reserved=4 * gibibyte)
    model = OnGpu(4096)
    # The copy of the jobs, what one may take and its context are left alone; the rest is for answers.
    share_gpus([model, model], [], job_bytes=2 * gibibyte)
    assert gpus.shares == {0: (4 + 10 - (4 + 2 + 1)) / 16}
    share_gpus([model], [], job_bytes=0)
    assert gpus.shares == {0: 14 / 16}
    with pytest.raises(
        UsageError, match="must have, beside the models of 4096 MiB, 1024 MiB for answers, and 10240 MiB"
    ):
        share_gpus([model], [], job_bytes=5 * gibibyte)
    limit_gpu_memory(3 * gibibyte)
    assert gpus.shares == {0: 7 / 16}
    limit_gpu_memory(None)
    assert gpus.shares == {0: 1.0}
    assert measure_half_of_gpu(torch.device("cuda")) == 8 * gibibyte
    share_gpus([nn.Linear(2, 2)], [], job_bytes=gibibyte)  # a model on the processor takes nothing there
    assert gpus.shares == {0: 1.0}


def test_a_table_or_a_law_that_a_gpu_cannot_hold_is_no_damaged_file(tmp_path, monkeypatch):
    folder = write_family("qwen3", tmp_path / "qwen3")

    def fail(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    for part in ("transformers.AutoModelForCausalLM.from_pretrained", "torch.linspace"):
        with monkeypatch.context() as patch:
            patch.setattr(part, fail)
            with pytest.raises(UsageError, match="must hold model='qwen3' and a pass of it, and has too little memory"):
                load_backbone(str(folder), precision="float32", device="cpu")


def test_numbers_are_sent_in_one_copy_and_come_back_in_their_shapes():
    tensors = [torch.arange(6).view(2, 3), torch.arange(0), torch.tensor([7])]
    assert all(one is other for one, other in zip(send(tensors, torch.device("cpu")), tensors, strict=True))
    there = send(tensors, torch.device("meta"))
    assert [(one.shape, one.device.type) for one in there] == [(one.shape, "meta") for one in tensors]


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
        config = dataclasses.replace(make_default_config(method), prompt_length=2, epochs=2, batch_size=8)
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

"""Models on another device: what is asked for and is not there is refused, and a pass mixes no devices.

No GPU is needed: torch's `meta` device computes shapes alone, refuses to tell a number, and refuses sums and copies of
what lies elsewhere, as a GPU does (not products: a GPU refuses those too).
"""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import masking_utils

from rapt.errors import UsageError
from rapt.service.backbone.layout import embed_with_prompts, lay_out
from rapt.service.backbone.placement import VARIABLE, choose_device, move_to
from rapt.service.backbone.steering import LoraPair, Tuned, steer
from rapt.service.tuning.tasks import TASKS
from tiny_backbones import tiny_backbone

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

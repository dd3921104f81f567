"""Whole runs on a device that is none (`pretend_gpu`): no tensor is left on the processor, in any family or method.

What only a GPU can say, its kernels, speed and memory, is not said here.
"""

import json
import os
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from tiny_backbones import FAMILIES, TINY

# One process makes the device known to torch, and never goes back. It tunes on it, stops and resumes by way of
# files, answers and writes in mixed batches, and prints how far the numbers of the two are apart.
STORY = """
import json, os, sys, tempfile
from dataclasses import replace
from pathlib import Path
import torch
import pretend_gpu
device = pretend_gpu.register()
from rapt.service.adapter.adapter import adapter_from_files, adapter_to_files
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.adapter.hub_folder import make_hub_files
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone import opening
from rapt.service.tuning.run_state import load_run_state, save_run_state
from rapt.service.tuning.tuner import TuningCancelled, tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.training import ParameterGroup, Trainer, back_propagate
from tiny_backbones import TINY, write_family, write_tiny_model
from tuning_material import few_words_file

choose = opening.choose_device  # which knows two kinds of devices by name
opening.choose_device = lambda name: device if name == pretend_gpu.NAME else choose(name)
place = Path(tempfile.mkdtemp())

def go(family, asked):
    folder = (write_tiny_model if family in TINY else write_family)(family, place / family)
    here, there = (
        opening.load_backbone(str(folder), precision="float32", device=name) for name in ("cpu", pretend_gpu.NAME)
    )
    assert there.device.type == pretend_gpu.NAME
    file = few_words_file(here, targets=here.kind != "encoder")
    adapters = {"cpu": [], pretend_gpu.NAME: []}
    for method in asked or list_methods(there):
        task = "generation" if here.kind != "encoder" and method != "linear_probing" else "classification"
        config = replace(make_default_config(method), prompt_length=2, epochs=2, batch_size=8, task=task)
        kept = []
        whole = tune(there, file, config=config, recompute=True)
        try:
            stop = iter([False, True]).__next__
            tune(there, file, config=config, should_stop=stop, on_run_state=lambda *of: kept.append(of))
        except TuningCancelled:
            save_run_state(kept[-1][0], place / f"{family}-{method}")
        again = tune(there, file, config=config, resume_from=load_run_state(place / f"{family}-{method}"))
        assert adapter_to_files(again) == adapter_to_files(whole), "another device must not cost bits"
        make_hub_files(again, backbone=there)
        files = adapter_to_files(again)
        adapters[pretend_gpu.NAME].append(adapter_from_files(files, backbone=there))
        adapters["cpu"].append(adapter_from_files(files, backbone=here))
    found = []
    for backbone in (here, there):
        own = adapters[backbone.device.type]
        words = [adapter for adapter in own if adapter.card.task == "generation"]
        classes = [adapter for adapter in own if adapter.card.task == "classification"]
        rows = [row_of(file.records[at % 5], adapter=adapter) for at, adapter in enumerate(classes)]
        numbers = [number for answer in classify(backbone, rows) for number in answer]
        if words:
            batch = DecodingBatch(backbone)
            sampling = [Sampling(temperature=0, top_logprobs=2), Sampling(temperature=0.7, seed=3)]
            rows = [
                GenerationRow(
                    adapter=adapter, token_ids=file.records[at].token_ids, most_tokens=9, sampling=sampling[at % 2]
                )
                for at, adapter in enumerate([*words, None])
            ]
            written = [*batch.join(rows[:1]), *batch.join(rows[1:]), *batch.step()]
            aside = batch.take_out(0)
            written += batch.step() if len(batch) else []
            batch.put_in(aside)
            batch.keep(range(1, len(batch)))
            written += batch.step() if len(batch) else []
            numbers += [number for choice in written for number in (choice.token_id, choice.logprob)]
        found.append(numbers)
    print("apart", json.dumps([family, max(abs(one - two) for one, two in zip(*found, strict=True))]), flush=True)

for family, methods in json.loads(sys.argv[1]):
    go(family, methods)

# The fused kernel, which learns what is denoised, has its count of steps on the device.
weight = torch.nn.Parameter(torch.ones(3, device=device))
for state in (None, {}):
    trainer = Trainer([ParameterGroup({"weight": weight}, 0.1)], fused=True)
    if state is not None:
        trainer.restore(kept, steps=1)
    next(trainer.follow([0], lambda _: back_propagate((weight * weight).sum()), rate=lambda step: 1.0))
    kept = trainer.state()
assert kept["step/weight"].device.type == pretend_gpu.NAME
try:
    weight + torch.ones(3)
except RuntimeError as error:
    print("twin", "same device" in str(error), flush=True)
os._exit(0)  # the thread of the way back is not ended in order where its device is written in Python
"""


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch lets no device be written in Python",
)
@pytest.mark.parametrize(
    "asked",
    [
        [("bert", ("prefix_tuning",)), ("llama", ("lora",)), ("t5", ("prompt_tuning",))],
        pytest.param([(family, None) for family in (*TINY, *FAMILIES) if family != "bloom"], marks=pytest.mark.slow),
    ],
    ids=["few", "all"],
)
def test_tuning_resuming_answering_and_writing_leave_nothing_on_the_processor(asked):
    done = subprocess.run(
        [sys.executable, "-c", STORY, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    apart = dict(json.loads(rest) for word, _, rest in lines if word == "apart")
    assert set(apart) == {family for family, _ in asked}
    assert max(apart.values()) < 1e-4, apart
    assert ("twin", " ", "True") in lines  # a tensor that was left behind is refused

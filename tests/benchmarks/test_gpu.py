"""The benchmark of GPUs at a tiny size on the processor: every part runs, and says that it is no result."""

import importlib
import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def raise_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


def numbers_in(value):
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.filterwarnings("ignore")  # of the peers that are measured
def test_every_part_runs_on_the_processor_and_a_budget_that_is_spent_leaves_parts_out(monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    small = ["gpu.py", "--sizes", "tiny", "--device", "cpu", "--rounds", "1", "--precision", "float32"]
    monkeypatch.setattr(sys, "argv", [*small, "--peak-tflops", "0.1"])
    state = torch.random.get_rng_state()
    gpu.main()
    torch.random.set_rng_state(state)  # the Trainer sets the global one
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "no GPU: these figures are no result"
    assert set(found["parts"]) == {"tuning tiny", "tenants tiny", "decoding tiny", "search 500 x 16"}
    assert "share_of_peak_of_a_plain_step" in found["parts"]["tuning tiny"]
    assert all(math.isfinite(number) and number > 0 for number in numbers_in(found["parts"]))
    assert "ours_over_ours_without_adapters" in found["parts"]["decoding tiny"]
    monkeypatch.setattr(sys, "argv", [*small, "--seconds", "0"])
    gpu.main()
    late = json.loads(capsys.readouterr().out)
    assert late["parts"] == {}
    assert late["left_out"] == ["search 500 x 16", "all of tiny"]
    # A part that runs on when all time is over ends there, and what was measured is printed.
    monkeypatch.setattr(gpu, "measure_search", lambda *_arguments, **_options: signal.raise_signal(signal.SIGALRM))
    monkeypatch.setattr(gpu, "write_model", lambda *_arguments, **_options: raise_out_of_memory())
    monkeypatch.setattr(sys, "argv", small)
    gpu.main()
    cut = json.loads(capsys.readouterr().out)
    assert cut["left_out"] == ["search 500 x 16: TimeUp", "all of tiny: OutOfMemoryError"]

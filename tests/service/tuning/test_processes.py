"""Several real processes against one."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import assert_close
from rapt.errors import UsageError
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.processes import ALONE, Processes
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, TuningConfig, join_processes, tune
from tuning_material import separable_file
from warm_processes import WarmProcess

# 35 records in batches of 16 leave a batch of three, fewer than it takes to give everybody one twice.
CONFIG = TuningConfig(
    prompt_length=4, epochs=2, batch_size=16, seed=1, reconstruction=ReconstructionConfig(weight=0.5, head_size=8)
)
RECORDS = 35

# What a process of several does, as `torchrun` starts it.
SCRIPT = """
import sys
from test_processes import train
train(sys.argv[1])
"""


def train(folder):
    """Be one of the processes, and write down what it was told."""
    # As in a process that has just begun: transformers imports this with a model, after the others were joined.
    sys.modules.pop("torch.distributed.nn.functional", None)
    with join_processes() as processes:
        importlib.import_module("torch.distributed.nn.functional")
        backbone = load_backbone("bert-tiny", precision="float32", device="cpu")
        file = separable_file(backbone, records=RECORDS, plain=4)
        seen, kept = [], []
        adapter = tune(
            backbone,
            file,
            config=CONFIG,
            processes=processes,
            on_progress=lambda step: seen.append(step.losses),
            on_run_state=lambda state, adapter: kept.append(state),
        )
        try:  # only the first one wants to stop
            tune(backbone, file, config=CONFIG, processes=processes, should_stop=lambda: processes.first)
            stopped = False
        except TuningCancelled:
            stopped = True
    left = not torch.distributed.is_initialized()
    talking = [thread for thread in Path("/proc/self/task").glob("*/comm") if "gloo" in thread.read_text()]
    try:
        with join_processes():
            refused = ""
    except UsageError as problem:
        refused = str(problem)
    tensors = {"prompt": adapter.prompt, "weight": adapter.head_weight, "bias": adapter.head_bias}
    save_file(tensors, f"{folder}/{processes.rank}.safetensors")
    told = {"count": processes.count, "seen": seen, "kept": len(kept), "stopped": stopped, "left": left}
    told |= {"talking": len(talking), "refused": refused}
    Path(f"{folder}/{processes.rank}.json").write_text(json.dumps(told))


def launch_by_torchrun(folder):
    here, script = Path(__file__), folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    path = f"{here.parent}:{here.parents[2]}:{here.parents[3] / 'src'}"
    done = subprocess.run(
        [*command, folder],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def launch_warm(folder):
    """As `torchrun` does: the processes meet in a store of the launcher, and know their place by their environment."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    places = [{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    both = [
        WarmProcess(train, str(folder), variables=meeting | place, log=folder / f"log-{place['RANK']}")
        for place in places
    ]
    for rank, process in enumerate(both):
        assert process.wait(300) == 0, (folder / f"log-{rank}").read_text()[-2000:]


@pytest.mark.parametrize("launch", [launch_warm, pytest.param(launch_by_torchrun, marks=pytest.mark.slow)])
def test_two_processes_give_the_adapter_of_one(tmp_path, launch):
    launch(tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [item["count"] for item in told] == [2, 2]
    assert [item["stopped"] for item in told] == [True, True]
    assert all(item["left"] and "keep one join_processes()" in item["refused"] for item in told)
    # A thread that still talks while the interpreter ends aborts the process, now and then.
    assert [item["talking"] for item in told] == [0, 0]
    assert (told[1]["seen"], told[1]["kept"]) == ([], 0)
    assert told[0]["kept"] == CONFIG.epochs
    backbone = load_backbone("bert-tiny", precision="float32", device="cpu")
    steps = []
    alone = tune(backbone, separable_file(backbone, records=RECORDS, plain=4), config=CONFIG, on_progress=steps.append)
    for step, losses in zip(steps, told[0]["seen"], strict=True):
        assert step.losses.keys() == losses.keys()
        for name, value in losses.items():
            assert_close(value, step.losses[name], of=backbone, steps=len(steps))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    expected = {"prompt": alone.prompt, "weight": alone.head_weight, "bias": alone.head_bias}
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        assert_close(first[name], value, of=backbone, steps=len(steps))


def test_shares_of_a_batch_hold_every_record_once():
    for records in (1, 3, 16):
        shares = [list(Processes(rank=rank, count=4).share(range(records))) for rank in range(4)]
        assert sorted(position for share in shares for position in share) == list(range(records))


def test_a_process_by_itself_exchanges_nothing():
    assert ALONE.first
    assert ALONE.sum(1.0, 2.5) == [1.0, 2.5]
    assert ALONE.as_first_says(True)
    assert not ALONE.as_first_says(False)


def test_a_group_somebody_else_made_is_left_to_them(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with join_processes() as processes:
            assert processes == ALONE
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_an_error_goes_through():
    with pytest.raises(ZeroDivisionError), join_processes():
        _ = 1 / 0

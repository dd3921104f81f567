"""`METHODS` is all that anybody need know of the methods: modules, documents and counts agree with it."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rapt.service.adapter.methods import METHODS
from rapt.service.tuning.tuning_config import make_default_config
from tiny_backbones import TINY

ROOT = Path(__file__).parents[4]
SHARED = {"__init__", "initialization", "method"}


def test_every_module_of_the_folder_is_a_method():
    folder = ROOT / "src/rapt/service/adapter/methods"
    assert {path.stem for path in folder.glob("*.py")} - SHARED == set(METHODS)


def test_the_table_in_the_documents_has_every_method_and_no_other():
    table = (ROOT / "docs/tuning.md").read_text(encoding="utf-8").split("| method |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE) == list(METHODS)


def test_the_names_are_known_where_torch_is_not_installed():
    code = "import sys; from rapt.service.adapter.methods import METHODS; print(*METHODS, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [*METHODS, "False"]


def test_another_name_is_no_method():
    assert "initialization" not in METHODS
    with pytest.raises(KeyError):
        METHODS["method"]


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_counts_what_it_trains(method, kind, tiny):
    backbone = tiny(kind)
    for network in METHODS[method].reparametrizations:
        settings = replace(make_default_config(method), prompt_length=3, reparametrization=network, lora_rank=2)
        made = METHODS[method].make(backbone, settings, (), torch.Generator().manual_seed(1))
        trained = sum(value.numel() for value in made.parameters())
        assert METHODS[method].parameters(backbone, settings) == trained

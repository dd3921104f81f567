"""The public API is what it says it is, and importing it costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rapt

SOURCE = Path(rapt.__file__)


def test_all_is_sorted_and_names_everything_public():
    # Constants, then classes, then functions, as ruff sorts them.
    assert rapt.__all__ == sorted(rapt.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(rapt.__all__) - {"__version__"} == set(rapt._HOMES)


@pytest.mark.parametrize("name", rapt.__all__)
def test_every_public_name_is_there_and_described(name):
    value = getattr(rapt, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)


def test_what_type_checkers_see_is_what_programs_get():
    tree = ast.parse(SOURCE.read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert seen == rapt._HOMES


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train_on_plain_text'"):
        _ = rapt.train_on_plain_text


def test_dir_lists_names_before_they_are_loaded():
    assert set(rapt.__all__) <= set(dir(rapt))


def test_importing_the_package_loads_no_room():
    script = """
import sys
import rapt
rooms = ("rapt.local", "rapt.service", "rapt.audit", "numpy", "torch")
loaded = [name for name in sys.modules if name.startswith(rooms)]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_loads_without_torch():
    script = """
import sys
sys.modules |= dict.fromkeys(("torch", "sklearn", "scipy", "fastapi", "transformers"))
import inspect, rapt
from rapt import *
assert len(inspect.getmembers(rapt)) >= len(rapt.__all__) > 40
assert "RaptClassifier" not in rapt.__all__  # which is scikit-learn's
try:
    rapt.RaptClassifier
except ImportError as error:
    assert "needs scikit-learn" in str(error)
"""
    subprocess.run([sys.executable, "-c", script], check=True)

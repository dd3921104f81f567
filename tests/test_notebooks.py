"""The notebooks run from their first cell to the last, and are kept without what they printed."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from running_service import running_service

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
# What a notebook prints somewhere.
PRINTS = {
    "quickstart": "Privatized(16 texts, mechanism='subset', epsilon=4)",
    "which_way_is_mine": "call [EMAIL] about the invoice",
    "auditing_your_data": "of the words",
    "a_team_on_one_service": "ft:minilm-codes:",
}


def cells_of(name: str) -> list[dict]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    return notebook["cells"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    backbones = load_backbones(load_settings({"models": "minilm-codes"}))
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


def test_there_is_a_test_for_each_notebook():
    assert {path.stem for path in FOLDER.iterdir()} == PRINTS.keys()


@pytest.mark.parametrize("name", PRINTS)
def test_a_notebook_runs_and_is_kept_without_its_outputs(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if name == "a_team_on_one_service":
        monkeypatch.setenv("RAPT_SERVICE", request.getfixturevalue("service"))
    shared: dict = {"__name__": "__main__"}
    with redirect_stdout(StringIO()) as printed:
        for cell in cells_of(name):
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None)
                exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), shared)
    assert PRINTS[name] in printed.getvalue()

"""Whole texts from the shell's side: what ε means, which one suits, and that no text ever shows."""

from __future__ import annotations

import json

from code_material import codes_manifest
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.privatized_writer import write_privatized_file


def test_a_file_of_codes_is_stated_in_words_and_as_json(rapt, tmp_path):
    with write_privatized_file(tmp_path / "codes", codes_manifest(epsilon=2.0)) as out:
        out.write(PrivatizedRecord(token_ids=(3,), label=1))
    page = rapt("statement", tmp_path / "codes")
    assert (page.code, page.err) == (0, "")
    assert "at better odds than e^2.00 : 1 = 7.4 : 1" in " ".join(page.out.split())
    assert "THIS PROTECTS NOTHING" in page.out  # the manifest names a seed
    found = json.loads(rapt("statement", tmp_path / "codes", "--json").out)
    assert (found["epsilon"], found["file"]["mechanism"]["name"]) == (2.0, "subset")


def test_an_epsilon_is_stated_before_there_is_a_file(rapt):
    assert "a guess among 1,000 equally likely texts is right at most" in " ".join(
        rapt("statement", "--epsilon", 4).out.split()
    )
    assert json.loads(rapt("statement", "--epsilon", 4, "--json").out)["file"] is None


def test_a_guess_among_so_many_texts_gives_an_epsilon(rapt):
    page = rapt("calibrate", "--guess", 0.05, "--among", 1000)
    assert (page.code, page.err) == (0, "")
    assert page.out.startswith("ε = 3.962 for a whole text\n")
    assert page.out.splitlines()[-4].split() == ["1", "3.962", "5.00%"]
    found = json.loads(rapt("calibrate", "--guess", 0.05, "--json").out)
    assert (found["epsilon"], found["among"]) == (3.962, 1000)
    assert found["reached"] <= 0.05

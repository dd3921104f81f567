"""`rapt pool` and `rapt contribute`: a crowd of files becomes one file of the service, and a model."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import httpx2
import pytest

from code_material import code_bundle, codes_manifest
from rapt.local import contributions
from rapt.local.contributions import name_receipts
from rapt.service.backbone.opening import load_served
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from running_service import running_service, save_privatized

NAME = "crowd-codes"


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=16, run=3)


@pytest.fixture(scope="module")
def url(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "bundle"
    write_code_bundle(code, folder)
    backbones = {NAME: load_served(str(folder), name=NAME, precision="auto")}
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as found:
        yield found


def save(code, path, numbers, **others):
    manifest = replace(
        codes_manifest(codewords=code.size, **others),
        vocabulary_hash=code.hash,
        randomness=Randomness(source="os", insecure_seed=None),
    )
    records = tuple(PrivatizedRecord(token_ids=(number % 16,), label=int(number % 16 > 7)) for number in numbers)
    return save_privatized(PrivatizedFile(manifest=seal_manifest(manifest, records), records=records), path)


@pytest.fixture
def pool(rapt, url, code, tmp_path):
    outcome = rapt("pool", "open", save(code, tmp_path / "like", [1]), "--least", 30, "--service", url)
    assert (outcome.code, "open, 0 contributions of 30" in outcome.err) == (0, True)
    return outcome.out.strip()


def status(rapt, url, pool):
    return json.loads(rapt("pool", "show", pool, "--service", url, "--json").out)


def test_files_of_a_crowd_become_one_model(rapt, url, code, pool, tmp_path):
    for person in range(4):
        file = save(code, tmp_path / f"person{person}", range(10 * person, 10 * person + 10))
        assert rapt("contribute", file, "--pool", pool, "--service", url).code == 0
        assert rapt("contribute", file, "--pool", pool, "--service", url).code == 0  # nothing is given twice
    assert status(rapt, url, pool)["contributions"] == 40
    closed = rapt("pool", "close", pool, "--service", url)
    assert re.fullmatch(r"file-\w+\n", closed.out)
    assert "40 contributions" in closed.err
    tuned = rapt("tune", "--file-id", closed.out.strip(), "--model", NAME, "--service", url)
    assert tuned.out.startswith(f"ft:{NAME}:")


def test_what_was_given_is_taken_back_by_its_receipts_alone(rapt, url, code, pool, tmp_path):
    file = save(code, tmp_path / "mine", range(5))
    rapt("contribute", file, "--pool", pool, "--service", url)
    receipts = name_receipts(file)
    assert receipts.stat().st_mode & 0o077 == 0
    file.unlink()
    outcome = rapt("contribute", file, "--pool", pool, "--service", url, "--take-back", "--json")
    assert json.loads(outcome.out)["taken_back"] == 5
    assert not receipts.exists()
    assert status(rapt, url, pool)["contributions"] == 0


def test_a_run_that_was_cut_off_goes_on_and_gives_nothing_twice(rapt, url, code, pool, tmp_path, monkeypatch):
    file = save(code, tmp_path / "mine", range(6))
    send, left = httpx2.Client.send, [4]

    def fail(self, request, **others):
        if request.method == "POST":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return send(self, request, **others)

    monkeypatch.setattr(httpx2.Client, "send", fail)
    monkeypatch.setattr(contributions, "_AT_ONCE", 1)
    assert rapt("contribute", file, "--pool", pool, "--service", url).code != 0
    monkeypatch.undo()
    assert status(rapt, url, pool)["contributions"] == 4
    assert rapt("contribute", file, "--pool", pool, "--service", url).code == 0
    assert status(rapt, url, pool)["contributions"] == 6


def test_what_no_pool_should_get_does_not_leave(rapt, url, code, pool, tmp_path):
    other = rapt("pool", "open", save(code, tmp_path / "like2", [1]), "--service", url).out.strip()
    given = save(code, tmp_path / "given", range(3))
    rapt("contribute", given, "--pool", pool, "--service", url)
    seeded = tmp_path / "seeded"
    records = (PrivatizedRecord(token_ids=(1,), label=0),)
    manifest = replace(codes_manifest(codewords=code.size), vocabulary_hash=code.hash)
    save_privatized(PrivatizedFile(manifest=seal_manifest(manifest, records), records=records), seeded)
    for file, asked, says in (
        (seeded, pool, "insecure-seed"),
        (save(code, tmp_path / "weaker", range(3), epsilon=9.0), pool, "as the pool asks"),
        (given, other, "given to one pool"),
        (tmp_path / "none", pool, "readable"),
    ):
        outcome = rapt("contribute", file, "--pool", asked, "--service", url)
        assert (outcome.code == 0, says in outcome.err, outcome.err.count("\n")) == (False, True, 1), outcome.err
    assert [path.name for path in tmp_path.glob("*.contributions.json")] == [name_receipts(given).name]
    assert status(rapt, url, pool)["contributions"] == 3


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "rapt.receipts/9"}', "secret"])
def test_damaged_receipts_are_named(rapt, url, code, pool, tmp_path, damage):
    file = save(code, tmp_path / "given", range(3))
    name_receipts(file).write_text(damage)
    for options in ((), ("--take-back",)):
        outcome = rapt("contribute", file, "--pool", pool, "--service", url, *options)
        said = (outcome.code == 0, "'given.contributions.json'" in outcome.err, "secret" in outcome.err)
        assert said == (False, True, False), outcome.err


def test_a_file_of_another_code_points_to_codes_and_to_no_vocabulary(rapt, url, code, tmp_path):
    file = save(replace(code, hash="sha256:" + 64 * "0"), tmp_path / "other", range(3))
    outcome = rapt("tune", file, "--service", url)
    assert (outcome.code == 0, "codebook" in outcome.err, "vocabulary fetch" in outcome.err) == (False, True, False)


def test_keys_of_contributors_do_not_close_a_service_that_is_open(rapt, url, pool):
    outcome = rapt("pool", "keys", pool, "--service", url)
    assert (outcome.code, "rapt admin create-key" in outcome.err) == (9, True)
    assert status(rapt, url, pool)["status"] == "open"


def test_a_job_is_named_in_one_way(rapt, url, code, tmp_path):
    file = save(code, tmp_path / "mine", range(3))
    for arguments in (("--file-id", "file-1"), (file, "--file-id", "file-1", "--model", NAME), ()):
        outcome = rapt("tune", *arguments, "--service", url)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)

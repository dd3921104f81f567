"""`rapt pool` and `rapt contribute`: a crowd of files becomes one file of the service, and a model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from code_material import code_bundle, codes_manifest
from rapt.at_home import load_code_model
from rapt.centering import center_codes, estimate_center
from rapt.errors import ServiceError
from rapt.local import contributions
from rapt.local.client import ServiceClient
from rapt.local.codes.subset import make_subset
from rapt.local.contributions import name_receipts
from rapt.service.backbone.opening import load_served
from rapt.wire.code_bundle import project_states, read_code_bundle, write_code_bundle
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import (
    PrivatizedFile,
    PrivatizedRecord,
    read_privatized_file,
    remove_labels,
    seal_manifest,
)
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
    assert "solved without steps" in tuned.err
    assert "n_epochs" not in tuned.err


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
        (seeded, pool, "from a seed"),
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


def test_a_pool_of_two_rounds_finds_its_centre_and_is_tuned_and_asked(rapt, url, code, tmp_path):
    # Texts of a narrow kind: far from the public centre, and two labels that differ by little.
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    states = (
        rng.standard_normal(6) * 3 + labels[:, None] * 3 * rng.standard_normal(6) + 0.2 * rng.standard_normal((400, 6))
    )

    def release(bundle, part, *, named, seed):
        mechanism = make_subset(bundle, epsilon=8.0)
        ids = mechanism.privatize(
            project_states(states[part].astype(np.float32), bundle), rng=np.random.default_rng(seed)
        )
        records = tuple(
            PrivatizedRecord(token_ids=(int(one),), label=int(label) if named else None)
            for (one,), label in zip(ids, labels[part], strict=True)
        )
        manifest = replace(
            codes_manifest(labels=("no", "yes") if named else None),
            vocabulary_hash=bundle.hash,
            mechanism=mechanism.setting,
            randomness=Randomness(source="os", insecure_seed=None),
        )
        return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)

    like = save_privatized(release(code, slice(0, 2), named=True, seed=1), tmp_path / "like")
    opened = rapt("pool", "open", like, "--least", 60, "--rounds", 2, "--first", 200, "--service", url)
    assert (opened.code, "round 1 of 2, which needs 200 contributions without labels" in opened.err) == (0, True)
    pool = opened.out.strip()
    to_pool = ("--pool", pool, "--service", url)
    first = save_privatized(release(code, slice(0, 200), named=False, seed=2), tmp_path / "first")
    assert "before it is closed" in rapt("pool", "close", pool, "--service", url).err
    assert "got 0; wait for more" in rapt("pool", "advance", pool, "--service", url).err
    named = save_privatized(release(code, slice(0, 5), named=True, seed=2), tmp_path / "named")
    assert "must be privatized as the pool asks" in rapt("contribute", named, *to_pool).err
    assert rapt("contribute", first, *to_pool).code == 0
    advanced = json.loads(rapt("pool", "advance", pool, "--service", url, "--json").out)
    assert (advanced["round"], advanced["contributions"]) == (2, 0)
    assert "first of two rounds to go on" in rapt("pool", "advance", pool, "--service", url).err

    base = tmp_path / "base"
    write_code_bundle(code, base)
    assert rapt("pool", "code", pool, "--codes", base, "--out", tmp_path / "centred", "--service", url).code == 0
    centred = read_code_bundle(tmp_path / "centred")
    ids = np.array([record.token_ids for record in read_privatized_file(first).records])
    center = estimate_center(code, read_privatized_file(first).manifest.mechanism, ids)
    there = center_codes(code, center)
    np.testing.assert_allclose(centred.offset, there.offset, atol=1e-5)  # added up in another order
    assert centred.hash != code.hash
    assert "must be privatized as the pool asks" in rapt("contribute", named, *to_pool).err  # of the first code

    second = save_privatized(release(centred, slice(200, 400), named=True, seed=3), tmp_path / "second")
    assert rapt("contribute", second, *to_pool).code == 0
    closed = rapt("pool", "close", pool, "--service", url)
    assert "200 contributions" in closed.err
    tuned = rapt("tune", "--file-id", closed.out.strip(), "--model", NAME, "--service", url)
    assert tuned.code == 0, tuned.err
    model = tuned.out.strip()
    with ServiceClient(url) as client:
        queries = release(centred, slice(200, 400), named=True, seed=4)
        said = client.classify(model, remove_labels(queries))
        other = replace(queries.manifest, vocabulary_hash="sha256:" + "1" * 64)
        with pytest.raises(ServiceError, match="vocabulary"):
            client.classify(model, remove_labels(replace(queries, manifest=other)))
        files = client.adapter(model)
        # The same answer by every way in, and by none for codes from another centre, or from that of public text.
        few = replace(remove_labels(queries), records=remove_labels(queries).records[:5])
        labels_of = [item.label for item in said[:5]]
        assert [item.text for item in client.generate(model, few)] == labels_of
        assert client.chat(model, [replace(few, records=few.records[:1])]).text == labels_of[0]
        for bundle in (code, center_codes(code, replace(center, offset=-center.offset))):
            strange = release(bundle, slice(200, 203), named=False, seed=4)
            for ask in (client.classify, client.generate):
                with pytest.raises(ServiceError):
                    ask(model, strange)
        with pytest.raises(ServiceError, match="vocabulary"):
            client.generate(NAME, few)  # the base model knows no centre
    asked = save_privatized(few, tmp_path / "asked")
    predicted = rapt("predict", asked, "--model", model, "--service", url)
    assert [json.loads(line)["label"] for line in predicted.out.splitlines()] == labels_of
    right = np.array([int(item.label_index) for item in said]) == labels[200:]
    known = SimpleNamespace(
        encode=lambda texts, first_position: states[[int(text) for text in texts]].astype(np.float32)
    )
    head = load_code_model(files, code=code, encoder=known)
    assert head.code.hash == centred.hash
    at_home = head.answer([str(place) for place in range(200, 400)], None, first_position=0)
    assert right.mean() > 0.7
    assert (at_home.argmax(axis=1) == labels[200:]).mean() > 0.8

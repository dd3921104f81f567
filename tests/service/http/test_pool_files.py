"""What a pool becomes: a file in a random order, made and tuned in memory that does not grow with the crowd."""

import secrets
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from code_material import code_bundle, codes_manifest
from rapt.centering import estimate_center
from rapt.service.backbone.opening import load_backbone
from rapt.service.http.admission import Gate
from rapt.service.http.pool_files import count_codewords, open_pool_file, shuffle_lines
from rapt.service.storage.callers import Caller
from rapt.service.storage.contribution_rows import contribute
from rapt.service.storage.pool_rows import begin_closing, open_pool
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.service.tuning.code_head import tune_code_head
from rapt.service.tuning.result import TuningCancelled
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.privatized_file import PrivatizedFile, parse_record, read_privatized_file
from rapt.wire.strict_json import parse_document

FEW, MANY = 3_000, 12_000


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=16, run=3)


@pytest.fixture(scope="module")
def lines():
    """Codes of many texts with labels that the codes tell."""
    rng = np.random.default_rng(0)
    codes = rng.integers(16, size=MANY)
    labels = (rng.random(MANY) < np.where(codes < 8, 0.8, 0.2)).astype(int)
    return [f'{{"token_ids":[{one}],"label":{label}}}\n' for one, label in zip(codes, labels, strict=True)]


@pytest.fixture(scope="module")
def files(code, lines, tmp_path_factory):
    """The files of a pool of few and of one of many, and the peak of memory while each was made, bytes."""
    folder, made = tmp_path_factory.mktemp("pools"), {}
    caller = Caller(tenant="local", key="k", role="tenant")
    write_code_bundle(code, folder / "codes")
    gate = Gate([load_backbone(str(folder / "codes")).bundle], codes=[code])
    manifest = replace(codes_manifest(codewords=16), vocabulary_hash=code.hash)
    with open_store(folder / "data") as store:
        ensure_tenant(store, "local", now=0)
        for texts in (FEW, FEW, MANY):  # twice: what the first one imports is no part of it
            pool = open_pool(store, manifest, setting="aa", least=2, most=MANY, caller=caller, now=1, max_bytes=2**30)
            for start in range(0, texts, 1000):
                given = {secrets.token_hex(12): line for line in lines[start : start + 1000]}
                contribute(store, pool.id, lines=given, setting="aa", caller=caller, max_bytes=2**30)
            closing = begin_closing(store, pool.id, caller=caller, now=2)
            tracemalloc.start()
            with open_pool_file(store, gate, closing) as (staged, summary):
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert (summary.manifest.records, summary.longest) == (texts, 1)
                made[texts] = staged.path.rename(folder / str(texts)), peak
    return made


def test_a_pool_becomes_a_file_in_memory_that_does_not_grow_with_it(files, lines):
    for texts in (FEW, MANY):
        assert sorted(files[texts][0].read_text().splitlines(keepends=True)[1:]) == sorted(lines[:texts])
    assert files[MANY][1] < 1.3 * files[FEW][1]


def test_a_head_is_tuned_on_a_file_in_a_few_bytes_a_text_and_is_the_same_to_the_last_bit(files, code, tmp_path):
    write_code_bundle(code, tmp_path / "codes")
    backbone, config, peaks = load_backbone(str(tmp_path / "codes")), make_default_config("linear_probing"), {}
    for texts in (FEW, FEW, MANY):
        tracemalloc.start()
        with pytest.raises(TuningCancelled):  # when all is counted, and before the head is solved
            tune_code_head(backbone, read_privatized_file(files[texts][0]), config=config, should_stop=lambda: True)
        peaks[texts] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[MANY] - peaks[FEW]) / (MANY - FEW) < 64  # a text that is an object takes ten times as much
    file = read_privatized_file(files[FEW][0])
    tuned = tune_code_head(backbone, file, config=config)
    apart = [
        parse_record(parse_document(line, what="a record"), position=0)
        for line in files[FEW][0].read_bytes().splitlines()[1:]
    ]
    assert len({id(record) for record in apart}) == FEW
    again = tune_code_head(backbone, PrivatizedFile(manifest=file.manifest, records=tuple(apart)), config=config)
    assert torch.equal(again.head_weight, tuned.head_weight)
    assert torch.equal(again.head_bias, tuned.head_bias)


def test_lines_are_shuffled_between_piles_and_within_them(tmp_path):
    given = [f"{number}\n" for number in range(4096)]
    mixed = np.array([int(line) for line in shuffle_lines(given, folder=tmp_path / "piles")])
    assert sorted(mixed) == list(range(4096))
    # Of a random order the share of steps up has a deviation of 0.0045, and the correlation of 0.0156: six of them, a
    # chance of 4 in 10^9.
    assert abs((np.diff(mixed) > 0).mean() - 0.5) < 0.028
    assert abs(np.corrcoef(mixed, np.arange(4096))[0, 1]) < 0.094


def test_a_centre_is_estimated_from_counts_as_from_the_records(code, lines):
    counts = count_codewords(lines, codes=1, size=16)
    ids = np.array([[parse_document(line, what="a line")["token_ids"][0]] for line in lines])
    assert counts.tolist() == [np.bincount(ids[:, 0], minlength=16).tolist()]
    found = estimate_center(code, codes_manifest(codewords=16).mechanism, ids)
    assert found.first_round.texts == MANY

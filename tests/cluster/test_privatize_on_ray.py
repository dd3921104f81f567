"""`rapt privatize --engine ray`: what one machine would write, and one draw of each text whatever dies meanwhile."""

from __future__ import annotations

import json
from ast import literal_eval
from itertools import islice, pairwise
from multiprocessing import active_children

import hurt_tasks
import numpy as np
import pytest
from pyarrow import parquet, table

from rapt.cli.program import run as rapt
from rapt.cluster import join_cluster
from rapt.errors import ClusterError
from rapt.local.corpus import privatize_corpus
from rapt.local.ledger import open_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.records import ChunkSetting, SourceItem, cut_into_chunks
from rapt.local.workers import BlockSetting, draw_block, privatize_on_cluster
from rapt.wire.manifest import CLUSTER_SOURCE, NO_PLAIN_TOKENS, Randomness
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word

pytestmark = pytest.mark.ray
KEY = bytes(range(32))
TEXTS = [" ".join(toy_word((7 * i + j) % 300) for j in range(1 + i % 5)) for i in range(700)]


def privatizer_at(eta):
    vocabulary = toy_vocabulary(np.random.default_rng(1).standard_normal((300, 4)))
    return Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=eta), NO_PLAIN_TOKENS)


@pytest.fixture(scope="module")
def privatizer():
    return privatizer_at(2.0)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": text, "label": ("no", "yes")[i % 2]}) + "\n" for i, text in enumerate(TEXTS)]
    path.write_text("".join(rows))
    return path


def blocks(size=100):
    return cut_into_chunks((SourceItem(text, None) for text in TEXTS), first_position=0, labelled=False, size=size)


def setting_of(privatizer):
    manifest = privatizer.manifest(labels=None, randomness=Randomness(source=CLUSTER_SOURCE))
    return ChunkSetting(privatizer, None, manifest)


def test_rows_order_and_counts_are_those_of_one_machine(cluster, source, tmp_path):
    quiet = privatizer_at(1e6)  # at which every token stays, so that the order shows
    here, there = tmp_path / "here", tmp_path / "there"
    one = privatize_corpus(source, here, privatizer=quiet, stream=secure_stream())
    many = privatize_corpus(source, there, privatizer=quiet, stream=secure_stream(), cluster=cluster)
    assert read_privatized_file(here).records == read_privatized_file(there).records
    assert (one.records, one.tokens, one.records_sha256) == (many.records, many.tokens, many.records_sha256)
    assert (one.records, many.randomness.source) == (700, CLUSTER_SOURCE)


@pytest.mark.parametrize(("draw", "alike"), [("ours", True), ("twin", False)])
def test_a_block_whose_task_was_killed_is_the_one_that_was_drawn_before(cluster, privatizer, tmp_path, draw, alike):
    own = BlockSetting(setting_of(privatizer), KEY)
    setting = (str(tmp_path), hurt_tasks.DRAWS[draw], own)
    three = list(islice(blocks(), 3))
    answered = [records for _, records in cluster.run(hurt_tasks.die_once, three, setting=setting, in_order=True)]
    seen = [literal_eval((tmp_path / f"{100 * number}").read_text()) for number in range(3)]
    # 100 texts of 300 words at this eta: a fresh draw is the same one with a probability below 2**-100.
    assert (seen == [[record.token_ids for record in records] for records in answered]) is alike
    if alike:  # and another run under the same key, which nobody hurt, gives the same bytes
        assert answered == list(privatize_on_cluster(iter(three), own.chunk, cluster=cluster, key=KEY))


def test_every_block_and_every_run_has_noise_of_its_own(privatizer):
    same = [SourceItem(toy_word(7), None)] * 80
    first, second = cut_into_chunks(iter(same), first_position=0, labelled=False, size=40)
    own, other = (BlockSetting(setting_of(privatizer), key) for key in (KEY, KEY[::-1]))
    drawn = [[r.token_ids for r in draw_block(*given)] for given in [(own, first), (own, second), (other, first)]]
    assert all(a != b for a, b in pairwise([*drawn, drawn[0]]))
    assert drawn[0] == [record.token_ids for record in draw_block(own, first)]
    assert KEY.hex() not in repr(own)
    assert repr(KEY) not in repr(own)


def test_a_ledger_is_charged_once_and_answers_the_next_run(cluster, privatizer, source, tmp_path):
    with open_ledger(tmp_path / "ledger") as ledger:
        given = {"privatizer": privatizer, "stream": secure_stream(), "ledger": ledger, "cluster": cluster}
        privatize_corpus(source, tmp_path / "first", **given)
        different = len({tuple(content) for content in privatizer.contents(TEXTS)})
        assert (ledger.tally.released["metric"], ledger.tally.answered["metric"]) == (different, 700 - different)
        privatize_corpus(source, tmp_path / "second", **given)
        assert (ledger.tally.released["metric"], ledger.tally.answered["metric"]) == (different, 1400 - different)
    assert read_privatized_file(tmp_path / "first").records == read_privatized_file(tmp_path / "second").records


def test_a_run_goes_on_after_its_head_node_was_lost(cluster, nodes, privatizer, source, tmp_path):
    target, written, others = tmp_path / "out", [], set(active_children())
    source.write_text(4 * source.read_text())  # 6 blocks, of which three were begun when the first is written
    with nodes() as held, join_cluster(held.address) as joined:

        def kill(records, _tokens):
            if not written:
                held.kill("head")
                (between,) = set(active_children()) - others
                between.join()  # Ray ends it when it believes that the head is gone
            written.append(records)

        given = {"privatizer": privatizer, "stream": secure_stream(), "resume": True}
        with pytest.raises(ClusterError, match="the head node of the Ray cluster must be there"):
            privatize_corpus(source, target, **given, cluster=joined, on_progress=kill)
    assert written[0] == 512
    begun = (tmp_path / "out.partial").read_bytes().splitlines()[1:]
    assert not target.exists()
    privatize_corpus(source, target, **given, cluster=cluster)
    whole = target.read_bytes().splitlines()[1:]
    assert len(begun) == written[-1]
    assert whole[: len(begun)] == begun
    assert len(whole) == 2800


def test_the_command_line_privatizes_whole_texts_of_a_parquet_file_on_ray(tmp_path, capsys):
    source = tmp_path / "texts.parquet"
    parquet.write_table(table({"text": [f"the soup number {i} was good" for i in range(40)]}), source)
    where = [str(source), str(tmp_path / "out"), "--epsilon", "4", "--no-label", "--no-ledger"]
    assert rapt(["privatize", *where, "--engine", "ray"]) == 0
    file = read_privatized_file(tmp_path / "out")
    assert (file.manifest.records, file.manifest.randomness.source) == (40, CLUSTER_SOURCE)
    capsys.readouterr()
    assert rapt(["statement", str(tmp_path / "out")]) == 0
    assert "The whole cluster is trusted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-address", "127.0.0.1:9"], "--ray-address must come with --engine ray"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:9", "--processes", "2"], "--processes must not stand beside"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "nothing answers there"),
    ],
)
def test_options_that_name_no_cluster_are_refused(options, message, source, tmp_path, capsys):
    found = ["privatize", str(source), str(tmp_path / "out"), "--eta", "75", "--vocabulary", "bert-tiny", "--no-ledger"]
    assert rapt([*found, *options]) != 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rapt: error: ")
    assert message in last
    assert not (tmp_path / "out").exists()

"""`rapt compare` and `rapt audit-model` with `--engine ray`: the numbers of one machine, and what was done is kept."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from rapt.audit import ModelAuditPlan, audit_model
from rapt.audit.artefact.run import ArtefactPlan
from rapt.audit.kept_results import to_json
from rapt.compare.bench import run_comparison
from rapt.compare.plan import CLEAN, PROMPT, ComparisonPlan
from rapt.compare.texts import LabelledTexts, Split
from rapt.errors import ClusterError, VocabularyError

pytestmark = pytest.mark.ray
PLAN = ComparisonPlan(
    model="bert-tiny", etas=(500.0,), seeds=(0, 1), arms=(CLEAN, PROMPT), privatizations=1, epochs=1, batch_size=8
)


def texts(count, *, start):
    places = range(start, start + count)
    return LabelledTexts(
        texts=tuple(f"the film was {('bad', 'good')[place % 2]} in scene {place}" for place in places),
        labels=tuple(place % 2 for place in places),
        names=("negative", "positive"),
    )


SPLIT = Split(training=texts(24, start=0), evaluation=texts(12, start=100))


def results_of(rows):
    """All that a result says but how long it took, in the order of the cells."""
    return sorted((json.dumps(asdict(row) | {"seconds": 0}) for row in rows), key=str)


def test_a_comparison_has_the_results_of_one_machine_and_goes_on_where_it_was(cluster, tmp_path):
    here = run_comparison(PLAN, SPLIT, results=tmp_path / "here")
    there = run_comparison(PLAN, SPLIT, results=tmp_path / "there", cluster=cluster)
    assert results_of(there) == results_of(here)
    lines = (tmp_path / "there").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:3]))
    seen = []
    again = run_comparison(
        PLAN,
        SPLIT,
        results=tmp_path / "cut",
        cluster=cluster,
        on_row=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 4), (4, 4)]
    assert results_of(again) == results_of(here)


@pytest.fixture
def plan(tmp_path):
    source = tmp_path / "texts.csv"
    rows = [f"the soup was {('bad', 'good')[i % 2]} and number {i} of all,label{i % 2}" for i in range(24)]
    source.write_text("text,label\n" + "\n".join(rows) + "\n")
    attacks = ArtefactPlan(
        parts=("membership", "words", "canaries"), models=3, queries=1, canaries=2, repetitions=(0, 1)
    )
    return ModelAuditPlan(file=source, eta=60.0, model="bert-tiny", epochs=1, attacks=attacks, out=tmp_path / "out")


def test_an_audit_of_models_has_the_json_of_one_machine_and_takes_what_was_kept(cluster, plan):
    here = audit_model(plan)
    there = audit_model(plan, cluster=cluster)
    assert json.dumps(to_json(there.findings)) == json.dumps(to_json(here.findings))
    kept = sorted((plan.out / "models").iterdir())
    assert len(kept) == 2 * 3 + 2 * 2  # models in clear and privatized, and runs with canaries
    before = {path: path.stat().st_mtime_ns for path in kept[1:]}
    for path in kept[0].iterdir():
        path.unlink()
    kept[0].rmdir()  # as if the head node had been lost before this one was done
    again = audit_model(plan, cluster=cluster)
    assert json.dumps(to_json(again.findings)) == json.dumps(to_json(here.findings))
    assert {path: path.stat().st_mtime_ns for path in kept[1:]} == before
    assert sorted((plan.out / "models").iterdir()) == kept


def test_a_node_without_the_weights_is_one_line(cluster, tmp_path):
    plan = ComparisonPlan(**vars(PLAN) | {"model": str(tmp_path / "nowhere")})
    with pytest.raises((VocabularyError, ClusterError)) as caught:
        run_comparison(plan, SPLIT, results=tmp_path / "results", cluster=cluster)
    assert "\n" not in str(caught.value)

"""Labelled entities: what a policy misses of them, what is left of each, and when one counts as recovered."""

import json
from dataclasses import replace

import pytest

from rapt.audit import AuditPlan, audit_file
from rapt.audit.judge.labelled_entities import measure_missed, read_labelled_texts
from rapt.errors import AuditError
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

pytest.importorskip("regex")

# Ann is found, of "bob ray" the surname is not, and "cal" is not at all; the mail is found by its pattern.
RULES = """
[kinds]
client = {mask = 'someone'}
email = 'mask'
film = {eta = 5e4}
[patterns]
client = 'ann lee|bob'
film = 'dune'
"""
LINES = [
    ("ann lee came", [("ann lee", "person")]),
    ("then bob ray and cal saw dune", [("bob ray", "person"), ("cal", "person"), ("dune", "film")]),
    ("mail a@example.org", [("a@example.org", "mail")]),
    ("nobody came", []),
]


def label(text, names):
    return [{"start": text.index(name), "end": text.index(name) + len(name), "kind": kind} for name, kind in names]


@pytest.fixture
def folder(tmp_path):
    """A policy, labelled texts, and a file in which nothing is changed but what the policy replaced."""
    (tmp_path / "policy.toml").write_text(RULES)
    lines = [json.dumps({"text": text, "label": "no", "entities": label(text, names)}) for text, names in LINES]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines) + "\n")
    table = load_vocabulary("bert-tiny")
    kept = Privatizer(table, make_mechanism("laplace", vocabulary=table, eta=1e5), NO_PLAIN_TOKENS)
    privatize_corpus(
        tmp_path / "labelled.jsonl",
        tmp_path / "out.jsonl",
        privatizer=PolicyPrivatizer(kept, Policy.read(tmp_path / "policy.toml")),
        label_column=None,
        stream=insecure_stream(0),
        ledger=None,
    )
    return tmp_path


def test_what_a_policy_misses_is_counted_by_kind_and_a_part_of_a_name_is_a_miss(folder):
    texts = read_labelled_texts(folder / "labelled.jsonl")
    policy = Policy.read(folder / "policy.toml")
    found = measure_missed(texts, [policy.apply(one.text) for one in texts])
    assert [(one.kind, one.missed.n, round(3 * one.missed.value)) for one in found] == [
        ("person", 3, 2),
        ("film", 1, 0),
        ("mail", 1, 0),
    ]
    assert found[0].whole == pytest.approx(1 / 3)
    assert all(one.missed.value == 1 for one in measure_missed(texts, [None] * len(texts)))
    assert "ann" not in repr(texts)


def test_an_audit_counts_what_is_left_of_a_name_and_never_what_is_gone(folder):
    plan = AuditPlan(
        file=folder / "out.jsonl",
        original=folder / "labelled.jsonl",
        policy=folder / "policy.toml",
        entities_labelled=folder / "labelled.jsonl",
        attacks=("embedding_inversion",),
        lend=0,
    )
    report = audit_file(plan)
    groups = {group.name: (group.first.n, group.first.value) for group in report.audit.strongest.detail.entities}
    # All that left is read: the surname, cal, and the film; ann lee and the mail are gone.
    assert groups == {"person": (3, pytest.approx(2 / 3)), "film": (1, 1.0), "mail": (1, 0.0)}
    assert [one.kind for one in report.missed] == ["person", "film", "mail"]
    with pytest.raises(AuditError, match="must belong to the privatized file"):
        audit_file(replace(plan, policy=None, entities_labelled=None))


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("x", "must be a JSON object"),
        ('{"text": 3, "entities": []}', "with a text"),
        ('{"text": "ab"}', "a list of at most"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 3, "kind": "person"}]}', "as places in its text"),
        ('{"text": "ab", "entities": [{"start": true, "end": 2, "kind": "person"}]}', "as places in its text"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 2, "kind": "A person"}]}', "in small letters"),
        (
            '{"text": "ab", "entities": [{"start": 0, "end": 2, "kind": "a"}, {"start": 1, "end": 2, "kind": "a"}]}',
            "do not overlap",
        ),
        ('{"text": "ab", "entities": []}', "at least one entity"),
    ],
)
def test_labelled_texts_that_cannot_be_read_are_refused_by_their_line(tmp_path, line, rule):
    path = tmp_path / "labelled.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(AuditError, match=rule):
        read_labelled_texts(path)

"""The audit of codes names texts no more often than its bound, reads what is there, and accuses what is not sound."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from rapt.audit.code_audit import audit_codes
from rapt.audit.codes.decoder import write_words
from rapt.audit.codes.desk import Originals
from rapt.audit.codes.naming import ALPHA, name_texts
from rapt.audit.codes.readers import Lesson, count_words, see_codes
from rapt.cli.audit_codes import format_code_audit
from rapt.cli.program import run
from rapt.errors import AuditError, MechanismError, VocabularyError
from rapt.local.codes.code_privatizer import CodePrivatizer
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import SubsetMechanism, make_subset
from rapt.local.codes.text_statement import bound_guess
from rapt.local.randomness import insecure_stream
from rapt.wire.code_bundle import make_code_bundle, project_states, write_code_bundle
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from running_service import save_privatized
from tiny_backbones import write_tiny_model

WORDS = "film plot actor scene music story ending cast joke camera".split()
KINDS = ("wonderful and moving", "dull and far too long")


@functools.cache
def small_encoder():
    return read_encoder("bert-tiny")


@pytest.fixture(scope="module")
def encoder():
    return small_encoder()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(3)
    return [
        f"the {rng.choice(WORDS)} of this {rng.choice(WORDS)} is {KINDS[number % 2]}" + " indeed" * (number % 5)
        for number in range(400)
    ]


@pytest.fixture(scope="module")
def states(encoder, texts):
    return encoder.encode(texts)


@pytest.fixture(scope="module")
def bundle(encoder, states):
    center = states.mean(axis=0)
    _, sizes, directions = np.linalg.svd(states - center, full_matrices=False)
    words = np.random.default_rng(1).standard_normal((256, 4))
    return make_code_bundle(
        model="bert-tiny",
        encoder_hash=encoder.hash,
        center=center,
        directions=(directions[:4] / sizes[:4, None]).astype(np.float32),
        codewords=(words / np.linalg.norm(words, axis=1, keepdims=True)).astype(np.float32)[None],
        max_tokens=encoder.max_tokens,
    )


def file_of(mechanism, released):
    privatizer = CodePrivatizer(encoder=small_encoder(), mechanism=mechanism)
    manifest = privatizer.manifest(labels=None, randomness=Randomness(source="a test", insecure_seed=1))
    records = tuple(PrivatizedRecord(token_ids=tuple(int(item) for item in ids)) for ids in released)
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)


def draw(mechanism, bundle, states, seed=0):
    return mechanism.privatize(project_states(states, bundle), rng=insecure_stream(seed).generator)


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 10.0])
def test_a_sound_file_is_named_within_its_bound_and_accused_of_nothing(encoder, bundle, texts, states, epsilon):
    mechanism = make_subset(bundle, epsilon=epsilon)
    file = file_of(mechanism, draw(mechanism, bundle, states))
    found = audit_codes(file, Originals(texts=tuple(texts)), bundle=bundle, encoder=encoder, quick=True)
    assert found.warnings == ()
    for item in found.naming:
        assert item.first.low <= item.bound
        assert item.bound == pytest.approx(np.exp(epsilon) / (np.exp(epsilon) + item.candidates - 1))
    assert found.fit.spent <= epsilon


def test_the_best_attack_among_two_is_as_good_as_the_channel_says(encoder, bundle, texts, states):
    mechanism = make_subset(bundle, epsilon=6.0)
    codes = project_states(states, bundle)
    chances = np.exp(mechanism.log_probabilities(codes))[:, 0]
    # Of two texts the likelier one: the mean over pairs of Σ_y max(P(y|x), P(y|x')) / 2.
    rng = np.random.default_rng(0)
    pairs = rng.integers(len(texts), size=(2000, 2))
    exact = np.mean([np.maximum(chances[a], chances[b]).sum() / 2 for a, b in pairs if a != b])
    found = [
        name_texts(mechanism, codes, draw(mechanism, bundle, states, seed)[None], among=(2,), rng=rng)[0]
        for seed in range(8)
    ]
    assert np.mean([item.first.value for item in found]) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("twin", ["always near", "half the noise", "one fixed codeword of the near ones", "shifted"])
def test_a_program_that_is_not_what_it_states_is_accused(encoder, bundle, texts, states, twin):
    stated = make_subset(bundle, epsilon=2.0)
    codes = project_states(states, bundle)
    if twin == "half the noise":
        released = draw(SubsetMechanism(bundle=bundle, epsilon=4.0, preferred=stated.preferred), bundle, states)
    elif twin == "shifted":
        released = (draw(stated, bundle, states) + 7) % bundle.size
    else:
        chances = stated.log_probabilities(codes)[:, 0]
        near = chances == chances.max(axis=1, keepdims=True)
        rng = np.random.default_rng(0)
        pick = (lambda row: rng.choice(np.flatnonzero(row))) if twin == "always near" else np.argmax
        mixed = np.array([pick(row) for row in near])[:, None]
        honest = draw(stated, bundle, states)
        keeps = near[np.arange(len(near)), honest[:, 0]] | (twin == "always near")
        released = np.where(keeps[:, None], mixed, honest)
    file = file_of(stated, released)
    found = audit_codes(file, Originals(texts=tuple(texts)), bundle=bundle, encoder=encoder, quick=True)
    assert found.fit.p_value < ALPHA
    assert any("stated mechanism" in warning for warning in found.warnings)
    if twin == "always near":
        assert found.fit.spent > 2.0
        assert found.fit.spent == found.fit.largest


def test_a_text_that_leaves_by_its_own_codeword_is_named_beyond_the_bound(encoder, bundle, texts, states):
    stated = SubsetMechanism(bundle=bundle, epsilon=1.0, preferred=1)
    nearest = (project_states(states, bundle) @ bundle.codewords[0].T).argmax(axis=1)
    found = audit_codes(
        file_of(stated, nearest[:, None]), Originals(texts=tuple(texts)), bundle=bundle, encoder=encoder, quick=True
    )
    among_ten = next(item for item in found.naming if item.candidates == 10)
    assert among_ten.first.low > bound_guess(1.0, among=10)
    assert any("among 10 more often" in warning for warning in found.warnings)


def test_readers_learn_where_there_is_much_to_read_and_nothing_at_a_small_epsilon(encoder, bundle, texts, states):
    def read(epsilon):
        mechanism = SubsetMechanism(bundle=bundle, epsilon=epsilon, preferred=8)
        originals = Originals(
            texts=tuple(texts), attributes={"kind": tuple(str(number % 2) for number in range(len(texts)))}
        )
        found = audit_codes(
            file_of(mechanism, draw(mechanism, bundle, states)), originals, bundle=bundle, encoder=encoder, quick=True
        )
        assert {item.reader for item in found.readings} == {"linear"}
        return {item.what: item for item in found.readings}

    strong, weak = read(14.0), read(0.05)
    assert strong["column kind"].first.low > 0.8
    assert weak["column kind"].first.low < 0.55
    for item in weak.values():
        assert item.first.low <= item.blind + 0.03
        assert item.blind <= item.bound < item.blind + 0.1
    assert set(strong) == {"5 tokens of a text", "which of two texts is longer", "column kind"}


def test_a_whole_audit_attacks_words_authors_and_tuned_heads_and_says_what_was_left_out(encoder, bundle, texts, states):
    mechanism = make_subset(bundle, epsilon=2.0)
    file = file_of(mechanism, draw(mechanism, bundle, states)[:100])
    labelled = tuple(replace(record, label=number % 2) for number, record in enumerate(file.records))
    file = PrivatizedFile(manifest=seal_manifest(replace(file.manifest, labels=("a", "b")), labelled), records=labelled)
    originals = Originals(texts=tuple(texts[:100]), authors=tuple("ab"[i % 2] for i in range(100)))
    found = audit_codes(file, originals, bundle=bundle, encoder=encoder)
    assert found.warnings == ()
    assert {(item.what, item.reader) for item in found.readings} == {
        (what, reader)
        for what in ("5 tokens of a text", "which of two texts is longer")
        for reader in ("linear", "neural")
    } | {("5 tokens of a text", f"label-aware {reader}") for reader in ("linear", "neural")}
    alone = found.strongest_reader.label_alone
    assert f"by the label alone, which travels beside the code: {alone:.1%}" in format_code_audit(found)
    assert [item.releases for item in found.repeated] == [1, 3, 10, 30]
    assert [item.bound for item in found.repeated] == sorted(item.bound for item in found.repeated)
    assert found.authors[0].bound == pytest.approx(np.exp(2) / (np.exp(2) + 1))
    assert found.membership.area.low <= found.membership.bound
    assert [item.copies for item in found.canaries] == [1, 10, 100]
    assert [item.attack for item in found.skipped] == ["language model"]
    assert 0 < found.bits < 2.0 / np.log(2)
    named, (first, *_) = found.naming[0], found.canaries
    close = replace(
        found,
        naming=(replace(named, bound=0.98001),),
        canaries=(replace(first, bound=0.88001),),
        membership=replace(found.membership, bound=0.98201),
        fit=replace(found.fit, spent=1.239, largest=2.001),
    )
    table = format_code_audit(close)
    for rounded in ("98.1%", "88.1%", "at most 0.983", "at least epsilon = 1.23,", "at most 2.01 could"):
        assert rounded in table
    unlabelled = file_of(mechanism, draw(mechanism, bundle, states)[:100])
    quick = audit_codes(unlabelled, Originals(texts=tuple(texts[:100])), bundle=bundle, encoder=encoder, quick=True)
    assert {item.attack for item in quick.skipped} == {"neural reader", "language model", "authors", "tuned heads"}
    assert "not run: language model: none was named; give --language-model" in format_code_audit(quick)


def test_public_text_teaches_the_readers_and_all_texts_are_read(encoder, bundle, texts, states):
    mechanism = SubsetMechanism(bundle=bundle, epsilon=14.0, preferred=8)
    file = file_of(mechanism, draw(mechanism, bundle, states)[:200])
    originals = Originals(texts=tuple(texts[:200]), public=tuple(texts[200:]), labels=(0, 1) * 100)
    found = audit_codes(file, originals, bundle=bundle, encoder=encoder, quick=True)
    assert found.learned_from == "200 public texts"
    assert "label-aware readers" in {item.attack for item in found.skipped}  # public texts have no labels of the file
    assert found.strongest_reader.first.n == 200
    assert next(item for item in found.readings if item.what.startswith("which")).first.low > 0.5
    with pytest.raises(AuditError, match="20 texts that are not in the file, got 3"):
        audit_codes(file, replace(originals, public=("a", "b", "c")), bundle=bundle, encoder=encoder)


def test_a_language_model_writes_what_a_code_may_be_of(encoder, bundle, texts, states, tmp_path, monkeypatch):
    mechanism = make_subset(bundle, epsilon=4.0)
    seen = see_codes(mechanism, draw(mechanism, bundle, states)[:40])
    lesson, contents = Lesson(learned=(seen[:30],), asked=seen[30:]), encoder.vocabulary.encode(texts[:40])
    words = count_words(contents[:30], contents[30:])
    model = str(write_tiny_model("llama", tmp_path / "model"))
    ask = {"model": model, "vocabulary": encoder.vocabulary, "seed": 0, "steps": 8, "samples": 2}
    said = write_words(lesson, words, texts[:30], **ask)
    assert said.shape == words.asked.shape
    assert (said > 0).all()
    assert (said <= 1).all()
    assert (write_words(lesson, words, texts[:30], **ask) == said).all()
    with pytest.raises(VocabularyError, match="language model must be a decoder"):
        audit_codes(
            file_of(mechanism, draw(mechanism, bundle, states)[:40]),
            Originals(texts=tuple(texts[:40])),
            bundle=bundle,
            encoder=encoder,
            language_model="bert-tiny",
        )
    monkeypatch.setattr("rapt.audit.codes.readers.find_spec", lambda name: None)
    file, originals = file_of(mechanism, draw(mechanism, bundle, states)[:40]), Originals(texts=tuple(texts[:40]))
    without = audit_codes(file, originals, bundle=bundle, encoder=encoder, language_model=model)
    reasons = {item.attack: item.reason for item in without.skipped}
    assert reasons["language model"] == reasons["neural reader"] == "it needs torch, which comes with the extra service"


def test_what_does_not_belong_together_is_refused(encoder, bundle, texts, states):
    mechanism = make_subset(bundle, epsilon=4.0)
    file = file_of(mechanism, draw(mechanism, bundle, states))
    whole = Originals(texts=tuple(texts))
    with pytest.raises(AuditError, match="400 texts"):
        audit_codes(file, Originals(texts=tuple(texts[:-1])), bundle=bundle, encoder=encoder, quick=True)
    other = replace(bundle, hash="sha256:" + "0" * 64)
    with pytest.raises(AuditError, match="code bundle"):
        audit_codes(file, whole, bundle=other, encoder=encoder)
    with pytest.raises(VocabularyError, match="encoder"):
        audit_codes(file, whole, bundle=bundle, encoder=read_encoder("minilm"))
    parameters = {**file.manifest.mechanism.parameters, "codewords": 8}
    wrong = replace(file.manifest, mechanism=replace(file.manifest.mechanism, parameters=parameters))
    with pytest.raises(MechanismError):
        audit_codes(
            PrivatizedFile(manifest=wrong, records=file.records), whole, bundle=bundle, encoder=encoder, quick=True
        )


def test_too_few_texts_are_said_to_be_too_few(encoder, bundle, texts, states):
    mechanism = make_subset(bundle, epsilon=4.0)
    file = file_of(mechanism, draw(mechanism, bundle, states[:2]))
    with pytest.raises(AuditError, match="at least 20 texts, got a file of 2") as caught:
        audit_codes(file, Originals(texts=tuple(texts[:2])), bundle=bundle, encoder=encoder, quick=True)
    assert "corpus it was made from" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "--attacks context",
        "--export-prompts prompts",
        "--entities",
        "--truncate 5",
        "--vocabulary bert-tiny",
        "--target-column answer",
        "--label-column label",
        "--keywords words.txt",
        "--public-label-column label",
        "--lend 0.5",
        "--limit 8",
    ],
)
def test_an_option_of_tokens_is_refused_beside_codes(given, bundle, states, tmp_path, capsys):
    mechanism = make_subset(bundle, epsilon=4.0)
    path = save_privatized(file_of(mechanism, draw(mechanism, bundle, states[:30])), tmp_path / "codes.jsonl")
    assert run(["audit", str(path), "--original", str(tmp_path / "none.csv"), *given.split()]) == 2
    said = capsys.readouterr().err
    assert f"{given.split()[0]} must come with a file of tokens, got one of whole texts; leave it out" in said
    assert said.count("\n") == 1


def test_a_report_on_codes_in_the_place_of_a_file_is_refused_before_the_work(bundle, states, tmp_path, capsys):
    mechanism = make_subset(bundle, epsilon=4.0)
    path = save_privatized(file_of(mechanism, draw(mechanism, bundle, states[:30])), tmp_path / "codes.jsonl")
    (tmp_path / "mine.txt").write_text("keep me")
    arguments = ["--original", str(tmp_path / "none.csv"), "--out", str(tmp_path / "mine.txt")]
    assert run(["audit", str(path), *arguments]) == 2
    said = capsys.readouterr().err
    assert "a report must be written to a folder" in said
    assert said.count("\n") == 1
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_the_command_audits_codes_and_keeps_no_text(bundle, texts, states, tmp_path, capsys):
    mechanism = make_subset(bundle, epsilon=4.0)
    path = save_privatized(file_of(mechanism, draw(mechanism, bundle, states)), tmp_path / "codes.jsonl")
    (tmp_path / "texts.csv").write_text("text,kind\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
    write_code_bundle(bundle, tmp_path / "code")
    arguments = ["audit", str(path), "--original", str(tmp_path / "texts.csv")]
    asked = ["--codes", str(tmp_path / "code"), "--attribute", "kind", "--out", str(tmp_path / "report")]
    asked += ["--author", "kind", "--quick"]
    assert run([*arguments, *asked]) == 0
    assert "nothing speaks against" in capsys.readouterr().out
    report = (tmp_path / "report" / "report.json").read_text()
    assert json.loads(report)["epsilon"] == 4.0
    assert not any(word in report for word in ("film", "wonderful"))
    assert run(arguments) == 2
    assert "--codes" in capsys.readouterr().err

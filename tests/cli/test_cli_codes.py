"""Whole texts from the shell's side: what ε means, which one suits, and that no text ever shows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from code_material import codes_manifest, parts_for
from rapt.local.codes.encoder import read_encoder
from rapt.public_models import PUBLIC_CODES
from rapt.wire.code_bundle import make_code_bundle, write_code_bundle
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import PrivatizedRecord, read_privatized_file
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


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A code of the encoder few-words, centred on a few public sentences; and others that do not fit a machine."""
    folder, encoder = tmp_path_factory.mktemp("codes"), read_encoder("few-words")
    parts = parts_for(encoder, public=["The film is good.", "What a dull evening.", "We went home early."])
    write_code_bundle(make_code_bundle(**parts), folder / "good")
    write_code_bundle(make_code_bundle(**parts | {"model": "no-such-encoder"}), folder / "unknown")
    write_code_bundle(make_code_bundle(**parts | {"encoder_hash": "sha256:" + "ef" * 32}), folder / "other")
    return folder


def test_texts_become_codes_at_one_epsilon_each(rapt, reviews, tmp_path, codes, never_shows):
    target = tmp_path / "out.jsonl"
    outcome = rapt("privatize", reviews, target, "--epsilon", 4, "--codes", codes / "good", "--keep-order")
    assert (outcome.code, outcome.out) == (0, f"{target}\n")
    assert "6 texts, ε = 4 for each; labels: 2 classes (sent in clear)" in outcome.err
    assert "trained on en; a text in another language is protected as well" in outcome.err
    never_shows(outcome.out + outcome.err + target.read_text())
    file = read_privatized_file(target)
    assert (file.manifest.schema, file.manifest.mechanism.epsilon) == ("rapt.codes/1", 4.0)
    assert [len(record.token_ids) for record in file.records] == [1] * 6
    assert [record.label for record in file.records] == [1, 0, 0, 1, 0, 1]
    assert "e^4.00 : 1" in rapt("statement", target).out


def test_no_code_has_to_be_named(rapt, reviews, tmp_path, never_shows):
    outcome = rapt("privatize", reviews, tmp_path / "out", "--epsilon", 4)
    assert outcome.code == 0
    never_shows(outcome.err + (tmp_path / "out").read_text())
    manifest = read_privatized_file(tmp_path / "out").manifest
    assert (manifest.model, manifest.vocabulary_hash) == ("minilm", PUBLIC_CODES["minilm-codes"])


@pytest.mark.parametrize("longest", [6, 1])
def test_the_code_that_comes_with_rapt_is_found_by_the_audit_whatever_the_lengths(rapt, tmp_path, longest):
    words = "soup film room trip book day song road shop bus game bed".split()
    texts = [
        f"the {word} was {'very ' * (place % longest)}{how}"
        for place, word in enumerate(words)
        for how in ("good", "bad")
    ]
    (tmp_path / "in.csv").write_text("\n".join(["text", *texts]) + "\n")
    assert rapt("privatize", tmp_path / "in.csv", tmp_path / "out", "--epsilon", 4, "--no-label").code == 0
    audited = rapt("audit", tmp_path / "out", "--original", tmp_path / "in.csv", "--json")
    assert audited.code == 0, audited.err
    assert json.loads(audited.out)


def test_the_ledger_counts_epsilon_apart_from_eta_and_answers_a_text_again(rapt, reviews, tmp_path, codes):
    book = tmp_path / "book.sqlite"
    counted = ("--ledger", book, "--codes", codes / "good", "--epsilon")
    assert rapt("privatize", reviews, tmp_path / "a", *counted, 4, "--cap", 5, "--keep-order").code == 0
    assert rapt("privatize", reviews, tmp_path / "b", *counted, 4, "--keep-order").code == 0
    first, again = (read_privatized_file(tmp_path / name).records for name in "ab")
    assert first == again
    spent = json.loads(rapt("ledger", "show", book, "--json").out)["spent"]
    assert (spent["text"]["in_all"], spent["text"]["most_on_one_text"], spent["metric"]["in_all"]) == (24.0, 4.0, 0.0)
    refused = rapt("privatize", reviews, tmp_path / "c", *counted, 2)
    assert refused.code == 10
    assert "would spend more" in refused.err
    assert not list(tmp_path.glob("c*"))


def test_randomized_labels_and_processes_come_as_with_tokens(rapt, tmp_path, codes):
    rows = [f"a film of number {i},an answer to {i},{'yes' if i % 3 else 'no'}" for i in range(600)]
    (tmp_path / "in.csv").write_text("\n".join(["one,two,label", *rows]) + "\n")
    outcome = rapt(
        "privatize", tmp_path / "in.csv", tmp_path / "out", "--epsilon", 2, "--codes", codes / "good", "--no-ledger",
        "--text-column", "one", "--label-epsilon", 1, "--labels", "no,yes",
        "--processes", 2,
    )  # fmt: skip
    assert outcome.code == 0
    file = read_privatized_file(tmp_path / "out")
    assert (file.manifest.records, file.manifest.tokens, file.manifest.pairs) == (600, 600, False)
    assert file.manifest.label_privacy == LabelPrivacy(epsilon=1.0)
    assert len({record.token_ids for record in file.records}) > 1
    assert "3.00 in all" in " ".join(rapt("statement", tmp_path / "out").out.split())


def test_an_epsilon_that_lets_texts_be_named_is_taken_only_from_who_says_so(rapt, reviews, tmp_path, codes):
    given = ("privatize", reviews, tmp_path / "out", "--epsilon", 20, "--codes", codes / "good")
    assert rapt(*given).code == 6
    outcome = rapt(*given, "--allow-large-epsilon")
    assert outcome.code == 0
    assert "warning: a text may be named among 1,000 others in 100.00 % of cases" in outcome.err
    assert "THIS PROTECTS NEXT TO NOTHING" in rapt("statement", tmp_path / "out").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("", 2, "one guarantee must be named: give --epsilon for whole texts, or --eta for tokens"),
        ("--epsilon 4 --eta 75 --codes good", 2, "one guarantee must be named"),
        ("--epsilon 4 --codes .", 5, "must be a folder with code.json and code.safetensors, or one of minilm-codes"),
        ("--epsilon 4 --codes unknown", 5, "or name it with --encoder"),
        ("--epsilon 4 --codes other", 5, "must be the one it was made with, few-words efefefefefef"),
        ("--epsilon 4 --codes good --encoder minilm", 5, "must be the one it was made with"),
        ("--epsilon 0 --codes good", 6, "must be a number above 0"),
        ("--epsilon -1 --codes good", 6, "must be a number above 0"),
        ("--epsilon nan --codes good", 6, "must be a number above 0"),
        ("--epsilon 16.1 --codes good", 6, "insist with --allow-large-epsilon"),
        ("--epsilon 65 --codes good --allow-large-epsilon", 6, "at most 64"),
        ("--epsilon 4 --codes good --plain-tokens 20", 2, "--plain-tokens must not stand beside --epsilon"),
        ("--epsilon 4 --codes good --vocabulary minilm --truncate 5", 2, "--vocabulary, --truncate must not stand"),
        ("--epsilon 4 --codes good --target-column label", 2, "--target-column must not stand beside --epsilon"),
        ("--eta 75 --codes good", 2, "--codes must not stand beside --eta"),
        ("--eta 75 --allow-large-epsilon", 2, "--allow-large-epsilon must not stand beside --eta"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    rapt, reviews, tmp_path, codes, monkeypatch, arguments, code, said
):
    monkeypatch.chdir(codes)
    outcome = rapt("privatize", reviews, tmp_path / "out", *arguments.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [reviews.name]


def test_codes_are_made_without_torch(reviews, tmp_path, codes):
    program = (
        "import sys; from rapt.cli.program import run; code = run(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    arguments = ["privatize", str(reviews), str(tmp_path / "out"), "--epsilon", "4", "--codes", str(codes / "good")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

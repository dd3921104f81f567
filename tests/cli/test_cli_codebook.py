import csv
import json

import numpy as np

from code_material import code_bundle, code_parts
from rapt.wire.code_bundle import make_code_bundle, place_on_arc, read_code_bundle, write_code_bundle
from rapt.wire.public_states import PUBLIC_STATES, read_public_states
from rapt.wire.reader_bundle import read_reader_bundle

WORDS = "the film was good bad slow loud long story actors laughed stars enough".split()


def write_public(path, *, label=""):
    rng = np.random.default_rng(3)
    texts = {" ".join(rng.choice(WORDS, size=6)) for _ in range(120)}
    rows = [f"{text},{'yes' if 'good' in text else 'no'}" if label else text for text in sorted(texts)]
    path.write_text("\n".join([f"text,{label}" if label else "text", *rows]) + "\n")
    return path


def test_a_code_is_made_from_public_files(rapt, tmp_path):
    public = write_public(tmp_path / "public.csv")
    task = write_public(tmp_path / "task.csv", label="kind")
    made = rapt(
        *("codebook", public, "--model", "few-words", "--task", task, "--label-column", "kind"),
        *("--label-name", "good film", "--label-name", "bad film"),
        *(
            "--dimensions",
            4,
            "--codewords",
            64,
            "--epsilon",
            2,
            "--language",
            "en",
            "--out",
            tmp_path / "code",
            "--json",
        ),
    )
    assert made.code == 0, made.err
    described = json.loads(made.out)
    bundle = read_code_bundle(tmp_path / "code")
    assert described["hash"] == bundle.hash
    assert (bundle.model, bundle.size, bundle.languages, len(bundle.directions)) == ("few-words", 64, ("en",), 4)
    assert [item["epsilon"] for item in described["measured"]] == [2]
    assert 0 < described["measured"][0]["attenuation"] < 1
    states = read_public_states(tmp_path / "code", encoder_hash=bundle.encoder_hash, width=len(bundle.center))
    assert len(states) == len(public.read_text().splitlines()) - 1
    np.testing.assert_allclose(states.mean(axis=0), bundle.center, atol=2e-3)
    again = rapt("codebook", public, "--model", "few-words", "--out", tmp_path / "code")
    assert (again.code, again.out) == (2, "")
    assert read_code_bundle(tmp_path / "code").hash == bundle.hash


def test_a_size_that_no_code_has_is_refused_before_anything_is_read(rapt, tmp_path):
    refused = rapt(
        "codebook", tmp_path / "none.csv", "--dimensions", 9, "--codes-per-text", 2, "--out", tmp_path / "code"
    )
    assert refused.code == 2
    assert "same number of dimensions" in refused.err
    assert not (tmp_path / "code").exists()


def test_a_file_that_is_not_there_leaves_no_folder(rapt, tmp_path):
    refused = rapt("codebook", tmp_path / "none.csv", "--model", "few-words", "--out", tmp_path / "code")
    assert refused.code == 3
    assert len(refused.err.strip().splitlines()) == 1
    assert not (tmp_path / "code").exists()


def test_texts_are_privatized_with_the_code_that_was_made(rapt, tmp_path, reviews, never_shows):
    made = rapt(
        *("codebook", write_public(tmp_path / "public.csv"), "--model", "few-words", "--dimensions", 4),
        *("--codewords", 64, "--out", tmp_path / "code"),
    )
    assert made.code == 0, made.err
    out = tmp_path / "out.jsonl"
    done = rapt("privatize", reviews, out, "--epsilon", 4, "--codes", tmp_path / "code")
    assert done.code == 0, done.err
    manifest, *records = (json.loads(line) for line in out.read_text().splitlines()[:7])
    bundle = read_code_bundle(tmp_path / "code")
    assert bundle.hash in json.dumps(manifest)
    assert len(records) == 6
    never_shows(out.read_text() + done.err + done.out)
    first = next(csv.DictReader(reviews.read_text().splitlines()))["text"]
    shown = rapt("show", out, "--original", reviews, "--first", 1)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[1] == f"  in clear  {first}"
    (tmp_path / "other.csv").write_text("text\none\n")
    refused = rapt("show", out, "--original", tmp_path / "other.csv")
    assert (refused.code, refused.out, "got 1 for 6" in refused.err) == (3, "", True)


def test_a_reader_is_made_from_public_files_and_its_folder_serves_as_a_code(rapt, tmp_path):
    public = write_public(tmp_path / "public.csv")
    sizes = ("--dimensions", 4, "--codewords", 32)
    assert rapt("codebook", public, "--model", "few-words", *sizes, "--out", tmp_path / "code").code == 0
    asked = ("reader", public, "--model", "few-words", "--codes", tmp_path / "code", "--out", tmp_path / "reader")
    made = rapt(*asked, "--epsilon", 2, "--epochs", 0.2, "--json")
    assert made.code == 0, made.err
    described = json.loads(made.out)
    bundle = read_reader_bundle(tmp_path / "reader")
    assert described["hash"] == bundle.hash
    assert (bundle.model, bundle.epsilons, bundle.code.hash) == (
        "few-words", (2.0,), read_code_bundle(tmp_path / "code").hash,
    )  # fmt: skip
    assert [item["epsilon"] for item in described["measured"]] == [2]
    again = rapt(*asked)
    assert (again.code, again.out) == (2, "")


def test_a_reader_of_a_codebook_alone_or_of_a_code_of_pairs_is_refused(rapt, tmp_path):
    public = write_public(tmp_path / "public.csv")
    pairs = {"center": np.zeros(1, np.float32), "directions": np.ones((1, 1), np.float32), "pairs": True}
    pairs |= {"codewords": place_on_arc(np.linspace(-0.9, 0.9, 8))[None].astype(np.float32)}
    write_code_bundle(make_code_bundle(**code_parts() | pairs), tmp_path / "pairs")
    for settings, said in (
        (("--model", "minilm-codes"), "for a language model, got a codebook"),
        (("--model", "few-words", "--codes", tmp_path / "pairs"), "of a code of single texts, got one of pairs"),
    ):
        refused = rapt("reader", public, *settings, "--out", tmp_path / "reader")
        assert (refused.code, said in refused.err, len(refused.err.splitlines())) == (2, True, 1)
    assert not (tmp_path / "reader").exists()


def test_a_code_is_centred_by_a_file_of_the_first_round_alone(rapt, tmp_path):
    folder = tmp_path
    (folder / "public.csv").write_text("text\n" + "".join(f"the film number {n} of {n * n}\n" for n in range(80)))
    (folder / "private.csv").write_text("text\n" + "".join(f"oil prices rose by {n} dollars\n" for n in range(60)))
    sizes = ("--dimensions", 4, "--codewords", 64)
    assert rapt("codebook", folder / "public.csv", "--model", "few-words", *sizes, "--out", folder / "code").code == 0
    done = rapt(
        *("privatize", folder / "private.csv", folder / "first.jsonl", "--epsilon", 8, "--codes", folder / "code"),
        "--no-label",
        "--no-ledger",
    )
    assert done.code == 0, done.err
    first, code = folder / "first.jsonl", folder / "code"
    made = rapt("center", first, "--codes", code, "--out", tmp_path / "centred", "--json")
    assert made.code == 0, made.err
    described, bundle = json.loads(made.out), read_code_bundle(tmp_path / "centred")
    assert (described["hash"], described["texts"]) == (bundle.hash, 60)
    assert (tmp_path / "centred" / PUBLIC_STATES).read_bytes() == (code / PUBLIC_STATES).read_bytes()
    write_code_bundle(code_bundle(), tmp_path / "other")
    refused = rapt("center", first, "--codes", tmp_path / "other", "--out", tmp_path / "again")
    assert (refused.code, "must be of the code" in refused.err) == (5, True), refused.err
    assert not (tmp_path / "again").exists()

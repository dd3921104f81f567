"""One code for a pair of texts: made from public pairs, released at one ε for both, tuned on, asked and audited."""

from __future__ import annotations

import json

import httpx2
import numpy as np
import pytest

from http_requests import done_job, upload
from rapt.cli.program import run
from rapt.errors import UsageError, VocabularyError, WireError
from rapt.local.client import ServiceClient
from rapt.local.codes.code_privatizer import encode_codes, join_pair, load_code_privatizer, split_pair
from rapt.local.codes.codebook import PublicStates, make_pair_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import SubsetMechanism, make_subset
from rapt.local.in_memory import privatize
from rapt.service.backbone.opening import load_served
from rapt.wire.code_bundle import compare_pairs, make_code_bundle, project_states, read_code_bundle
from rapt.wire.manifest import dump_manifest, parse_manifest
from rapt.wire.privatized_file import read_privatized_file
from running_service import running_service

WORDS = "film actor story music scene ending joke camera voice light house river".split()
COLUMNS = ("--text-column", "one", "--text-column-2", "two")


def write_pairs(path, count, *, seed):
    """Pairs of one text twice, labelled same, and of two that share no word, labelled other."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = rng.permutation(WORDS)
        first, second = " ".join(words[:5]), " ".join(words[:5] if number % 2 else words[5:10])
        rows.append(f"{first},{second},{'same' if number % 2 else 'other'}")
    path.write_text("\n".join(["one,two,label", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def code(folder):
    """Folder of a code of pairs, made by the command line from public pairs."""
    public = write_pairs(folder / "public.csv", 160, seed=1)
    assert (
        run([str(part) for part in ("codebook", public, "--model", "few-words", *COLUMNS, "--out", folder / "c")]) == 0
    )
    return folder / "c"


@pytest.fixture(scope="module")
def released(folder, code):
    """A file of 400 pairs that were released, and its source."""
    source, target = write_pairs(folder / "mine.csv", 400, seed=2), folder / "mine.rapt.jsonl"
    asked = ("privatize", source, target, "--epsilon", 8, "--codes", code, *COLUMNS, "--keep-order")
    ledger = ("--ledger", folder / "book")
    assert run([str(part) for part in (*asked, *ledger)]) == 0
    return target, source


@pytest.mark.parametrize("epsilon", [0.5, 4.0, 64.0])
def test_no_two_pairs_are_told_apart_beyond_epsilon(epsilon):
    states = PublicStates(texts=np.linspace(-0.3, 0.9, 200, dtype=np.float32)[:, None])
    encoder = read_encoder("few-words")
    bundle = make_pair_codebook(encoder, states)
    hard = np.array([[-1], [1], [0], [0.3], [0.30000001], [np.nan], [np.inf], [1e30]], dtype=np.float32)
    codes = project_states(np.concatenate([hard, states.texts]), bundle)
    logs = make_subset(bundle, epsilon=epsilon).log_probabilities(codes)[:, 0]
    assert (logs.max(axis=0) - logs.min(axis=0)).max() <= epsilon * (1 + 1e-12)
    assert np.exp(logs).sum(axis=1) == pytest.approx(1)


def test_a_number_of_near_codewords_that_depends_on_the_pair_is_told_apart_beyond_epsilon():
    states = PublicStates(texts=np.linspace(-0.3, 0.9, 200, dtype=np.float32)[:, None])
    bundle = make_pair_codebook(read_encoder("few-words"), states)
    codes = project_states(states.texts, bundle)
    by_pair = [SubsetMechanism(bundle=bundle, epsilon=2.0, preferred=m).log_probabilities(codes)[:, 0] for m in (1, 5)]
    wrong = np.where((states.texts > 0.3), *by_pair)
    assert (wrong.max(axis=0) - wrong.min(axis=0)).max() > 2.0


def test_how_alike_two_texts_are_is_what_a_code_of_a_pair_says(code):
    privatizer = load_code_privatizer(code, epsilon=4.0)
    bundle = privatizer.mechanism.bundle
    same, apart = join_pair("film actor story", "film actor story"), join_pair("film actor story", "river house light")
    codes = encode_codes(privatizer.encoder, [same, apart], bundle=bundle)
    assert codes[0, 0] > codes[1, 0]
    assert np.linalg.norm(codes, axis=1) == pytest.approx(1)
    assert split_pair(join_pair("a \0 b", "c")) == ("a   b", "c")
    zeros = np.zeros((1, 3), np.float32)
    assert compare_pairs(zeros, np.ones((1, 3), np.float32)).tolist() == [[0.0]]


def test_the_manifest_says_that_one_epsilon_is_for_the_pair(released, rapt):
    target, _ = released
    file = read_privatized_file(target)
    dumped = dump_manifest(file.manifest)
    assert (dumped["unit"], dumped["pairs"], dumped["mechanism"]["parameters"]["texts"]) == ("pair", False, 2)
    assert (file.manifest.records, file.manifest.tokens) == (400, 400)
    assert all(record.second_token_ids is None for record in file.records)
    for wrong in ({"unit": "text"}, {"pairs": True, "tokens": 800}):
        with pytest.raises(WireError):
            parse_manifest(dumped | wrong)
    page = " ".join(rapt("statement", target).out.split())
    assert "Protected: each pair of texts" in page
    assert "ε 8.00 for both of its texts together: 8.00 in all" in page


def test_a_ledger_counts_a_pair_once_and_answers_it_again(folder, released, code, rapt):
    target, source = released
    ledger = ("--ledger", folder / "book")
    spent = json.loads(rapt("ledger", "show", folder / "book", "--json").out)["spent"]["text"]
    assert (spent["in_all"], spent["most_on_one_text"]) == (400 * 8.0, 8.0)
    again = rapt(
        "privatize", source, folder / "again", "--epsilon", 8, "--codes", code, *COLUMNS, "--keep-order", *ledger
    )
    assert again.code == 0, again.err
    assert read_privatized_file(folder / "again").records == read_privatized_file(target).records


def test_a_code_of_one_kind_refuses_texts_of_the_other(released, code, rapt, tmp_path):
    _, source = released
    single = rapt("privatize", source, tmp_path / "a", "--epsilon", 4, "--codes", code, "--text-column", "one")
    assert (single.code, "a code of pairs must have two texts in each record, got one" in single.err) == (2, True)
    pairs = rapt("privatize", source, tmp_path / "b", "--epsilon", 4, *COLUMNS)
    assert (pairs.code, "pairs must have a code of pairs, whose ε is for both texts together" in pairs.err) == (2, True)
    assert not list(tmp_path.glob("[ab]*"))
    with pytest.raises(UsageError, match="must have two texts in each record"):
        privatize(["one text"], epsilon=4.0, code=code, ledger=None)
    centre = rapt("center", released[0], "--codes", code, "--out", tmp_path / "centred")
    assert (centre.code, "a code of pairs has no centre" in centre.err) == (2, True)
    for option in ("--dimensions", "--codes-per-text"):
        made = rapt("codebook", source, *COLUMNS, option, 2, "--out", tmp_path / "code")
        assert (made.code, f"{option} must not stand beside --text-column-2" in made.err) == (2, True)


def test_a_model_of_pairs_is_tuned_and_asked_privately_and_at_home(released, code, rapt, tmp_path):
    target, _ = released
    asked = write_pairs(tmp_path / "asked.csv", 100, seed=3)
    backbone = load_served(str(code), name="codes", precision="auto")
    with running_service(tmp_path / "data", backbones={"codes": backbone}) as url:
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            body = {"model": "codes", "training_file": upload(http, target).json()["id"]}
            model = done_job(http, body)["fine_tuned_model"]
        queries = privatize(
            [row.split(",")[0] for row in asked.read_text().splitlines()[1:]],
            second_texts=[row.split(",")[1] for row in asked.read_text().splitlines()[1:]],
            epsilon=8.0,
            code=code,
            ledger=None,
        )
        with ServiceClient(url) as client:
            said = [answer.label for answer in client.classify(model, queries.file)]
        # A pair is read right with probability above 0.9: 100 of them are so for 70 with probability above 1 - 1e-7.
        right = [("other", "same")[place % 2] for place in range(100)]
        assert sum(one == other for one, other in zip(said, right, strict=True)) >= 70
        access = ("--model", model, "--service", url)
        local = rapt("predict", asked, "--local", *COLUMNS, "--label-column", "label", *access)
        assert "right: 100 of 100" in local.err
        single = rapt("predict", asked, "--local", "--text-column", "one", *access)
        assert "must have two texts, with --text-column-2" in single.err


def test_an_audit_of_pairs_names_no_pair_beyond_its_bound(released, code, rapt, tmp_path):
    target, source = released
    found = rapt("audit", target, "--original", source, "--codes", code, *COLUMNS, "--quick", "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert (report["records"], report["warnings"]) == (400, [])
    one = rapt("audit", target, "--original", source, "--codes", code, "--text-column", "one", "--quick")
    assert "two texts a record, with --text-column-2" in one.err


def test_a_bundle_of_pairs_has_the_shape_of_one(code):
    good = read_code_bundle(code)
    parts = {name: getattr(good, name) for name in ("model", "encoder_hash", "center", "directions", "codewords")}
    parts |= {"max_tokens": good.max_tokens}
    assert make_code_bundle(**parts, pairs=True).hash == good.hash
    with pytest.raises(VocabularyError, match=r"must have center \(h,\)"):
        make_code_bundle(**parts)
    with pytest.raises(VocabularyError, match="a code of pairs must have center"):
        make_code_bundle(**parts | {"center": np.zeros(2, np.float32)}, pairs=True)
    with pytest.raises(UsageError, match="must differ in how alike"):
        make_pair_codebook(read_encoder("few-words"), PublicStates(texts=np.ones((70, 1), np.float32)))

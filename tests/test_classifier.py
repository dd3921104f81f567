"""`RaptClassifier` keeps scikit-learn's conventions, and nothing but what is privatized leaves it."""

import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from code_material import parts_for
from rapt.classifier import RaptClassifier
from rapt.errors import CorpusError, UsageError
from rapt.local.client import ServiceClient
from rapt.local.codes.codebook import PublicStates, make_pair_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.ledger_report import summarize_ledger
from rapt.service.backbone.opening import load_backbone, load_served
from rapt.wire.code_bundle import compare_pairs, make_code_bundle, write_code_bundle
from running_service import running_service

TEXTS = ["the best film of the year", "a dull and empty evening"] * 30
LABELS = np.array([True, False] * 30)
# Of 64 codewords one of the preferred is drawn but for one draw in e^12 / 64 = 2,500; a few of 60 change no answer.
EPSILON = 12.0


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A code of the encoder bert-tiny."""
    folder, encoder = tmp_path_factory.mktemp("codes") / "tiny-codes", read_encoder("bert-tiny")
    parts = parts_for(encoder, public=["The film is good.", "What a dull evening."], size=64)
    write_code_bundle(make_code_bundle(**parts), folder)
    return folder


@pytest.fixture(scope="module")
def url(code, tmp_path_factory):
    backbones = {"tiny-codes": load_served(str(code), name="tiny-codes", precision="auto")}
    backbones["bert-tiny"] = load_backbone("bert-tiny")
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as found:
        yield found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("values", [[3, -1], ["yes", "no"]])
def test_labels_of_any_kind_come_back_as_they_were(code, folder, values):
    y = np.array(values)[1 - LABELS.astype(int)]
    model = RaptClassifier(epsilon=EPSILON, code=code).fit(pd.Series(TEXTS), y)
    assert model.classes_.tolist() == sorted(values)
    assert model.score(TEXTS, y) == 1.0
    assert model.predict(np.array(TEXTS[:2])).dtype == y.dtype
    np.testing.assert_allclose(model.predict_proba(TEXTS[:3]).sum(axis=1), 1.0)
    assert "e^12.0" in model.privatized_.statement().unit
    assert list(folder.iterdir()) == []  # nothing left, so nothing is counted


def test_a_clone_a_pipeline_a_grid_and_a_pickle_work(code):
    model = RaptClassifier(epsilon=EPSILON, code=code)
    assert clone(model).get_params() == model.get_params()
    assert clone(model).set_params(epsilon=2.0).epsilon == 2.0
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)
    grid = GridSearchCV(make_pipeline(model), {"raptclassifier__epsilon": [EPSILON]}, cv=2)
    assert grid.fit(TEXTS, LABELS).best_score_ == 1.0
    again = pickle.loads(pickle.dumps(grid.best_estimator_))  # the program's own, never read by rapt
    assert (again.predict(TEXTS) == LABELS).all()


def test_tokens_are_tuned_here_too(folder):
    model = RaptClassifier(eta=100.0, vocabulary="bert-tiny").fit(TEXTS, LABELS)
    assert model.predict(TEXTS).shape == LABELS.shape
    assert model.privatized_.manifest.mechanism.eta == 100.0


@pytest.mark.parametrize("ask", ["home", "privately"])
def test_a_service_tunes_it_and_is_asked_at_home_or_privately(code, url, folder, ask):
    # Sixty texts, each a draw of its own: that a few are far off, one in 2,500 each, moves the head hardly.
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    with ServiceClient(url) as client:
        model = RaptClassifier(epsilon=EPSILON, code=code, service=client, ask=ask).fit(texts, LABELS)
        assert model.model_ in {found.id for found in client.models()}
        assert model.score(texts, LABELS) >= 0.9
    # Queries of the same setting are the same releases.
    assert summarize_ledger(folder / ".rapt" / "ledger.sqlite").releases == 60
    assert not any(text.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file() for text in TEXTS)


def test_a_part_is_contributed_to_a_pool_once(code, url, folder):
    texts, labels = ["a fine film", "a dull evening", "the best of all"], ["yes", "no", "yes"]
    model = RaptClassifier(epsilon=4.0, code=code, service=url)
    with ServiceClient(url) as client:
        manifest = model._privatize(texts, labels=labels, ledger=None, listed=["no", "yes"]).manifest
        model.set_params(pool=client.open_pool(manifest, least=3).id)
        for _ in range(2):
            model.partial_fit(texts, labels)
        assert client.pool(model.pool).contributions == 3
    assert len(list((folder / "contributions").glob("*.rapt.jsonl"))) == 1


def test_tuning_here_without_torch_says_what_is_missing_before_anything_is_drawn(code, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"tuning here needs torch; .* pip install -e '\.\[service\]'"):
        RaptClassifier(epsilon=EPSILON, code=code, ledger="book").fit(TEXTS, LABELS)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "y", "error", "said"),
    [
        ({}, LABELS, UsageError, "one guarantee must be named"),
        ({"epsilon": 4.0, "ask": "both"}, LABELS, UsageError, "ask must be 'home' or 'privately'"),
        ({"epsilon": 4.0, "ask": "privately"}, LABELS, UsageError, "must be asked at home"),
        ({"epsilon": 4.0}, LABELS[:3], UsageError, "one label for each text, got 3 labels for 60 texts"),
        ({"epsilon": 4.0}, [True] * 60, UsageError, "two classes at least"),
        ({"epsilon": 4.0}, [True, None] * 30, CorpusError, "record 2 must have a label"),
        ({"epsilon": 4.0, "label_epsilon": 1.0}, LABELS, UsageError, "must be listed"),
        (
            {"epsilon": 4.0, "classes": [*sorted(set(LABELS)), "new"]},
            LABELS,
            UsageError,
            "got 1 that do not; leave them",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_read_or_sent(settings, y, error, said):
    with pytest.raises(error, match=said):
        RaptClassifier(**settings).fit(TEXTS, y)
    with pytest.raises(UsageError, match="contributes to a pool"):
        RaptClassifier(**settings).partial_fit(TEXTS, LABELS)


def test_pairs_in_two_columns_are_tuned_on_as_one_code_each(tmp_path):
    words = np.array("film actor story music scene ending joke camera voice light".split())
    orders = [np.random.default_rng(number).permutation(words) for number in range(160)]
    same = np.arange(160) % 2 == 0
    table = pd.DataFrame(
        {
            "one": [" ".join(order[:4]) for order in orders],
            "two": [" ".join(order[:4] if alike else order[4:8]) for order, alike in zip(orders, same, strict=True)],
        }
    )
    encoder = read_encoder("bert-tiny")
    states = compare_pairs(encoder.encode(list(table["one"])), encoder.encode(list(table["two"])))
    write_code_bundle(make_pair_codebook(encoder, PublicStates(texts=states)), tmp_path / "code")
    settings = {"epsilon": EPSILON, "code": tmp_path / "code", "text_column": "one", "text_column_2": "two"}
    model = RaptClassifier(**settings).fit(table[:120], same[:120])
    assert model.privatized_.manifest.mechanism.texts == 2
    assert model.score(table[120:], same[120:]) == 1
    with pytest.raises(UsageError, match="a code of pairs must have two texts"):
        RaptClassifier(epsilon=EPSILON, code=tmp_path / "code", text_column="one").fit(table[:120], same[:120])


def test_a_policy_rewrites_what_is_privatized_and_what_is_asked_at_home(code, folder):
    pytest.importorskip("regex")
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "policy.toml").write_text(
        "[kinds]\nword = {mask = 'thing'}\n[patterns]\nword = '" + "|".join(words) + "'\n"
    )
    model = RaptClassifier(epsilon=EPSILON, code=code, policy="policy.toml").fit(TEXTS, LABELS)
    assert [one.kind for one in model.privatized_.manifest.policy] == ["word"]
    assert len(np.unique(model.predict_proba(TEXTS), axis=0)) <= len({len(text.split()) for text in TEXTS})
    without = RaptClassifier(epsilon=EPSILON, code=code).fit(TEXTS, LABELS)
    assert len(np.unique(without.predict_proba(TEXTS), axis=0)) > len({len(text.split()) for text in TEXTS})
    assert clone(model).policy == "policy.toml"

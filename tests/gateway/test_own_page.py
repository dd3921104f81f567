"""The page on the user's machine, asked over HTTP: who may ask, what it shows, what it counts, and what leaves."""

from __future__ import annotations

import json
import math

import pytest

from code_material import code_privatizer
from http_requests import done_job, open_client, upload
from page_figures import FIGURES, RESULTS, write_figures
from rapt.local.codes.text_statement import bound_guess
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.own_page.described import find_figures
from rapt.own_page.looking import look_at_code, look_at_tokens, set_strength
from rapt.own_page.routes import OPEN_PATHS
from rapt.public_models import PUBLIC_CODES, PUBLIC_MODELS
from rapt.severity import Severity, weigh_attack
from rapt.wire.privatized_file import read_privatized_lines
from running_gateway import KEY, running_gateway, token_privatizer, training_setting

SECRET = "the zeppelin is ill"
ROUTES = {
    "/own/setting": None,
    "/own/ledger": None,
    "/own/look": {"text": SECRET, "strength": 40},
    "/own/statement": {"strength": 40},
    "/own/ask": {"text": SECRET, "model": "bert-tiny"},
    "/own/ask-at-home": {"text": SECRET, "model": "bert-tiny"},
    "/own/file": b'{"kind":"csv"}\ntext\nzeppelin\n',
}


@pytest.fixture(scope="module")
def privatizer(backbones):
    return token_privatizer(backbones["bert-tiny"].bundle, eta=40.0, truncate_to=40)


@pytest.fixture(scope="module")
def base(recorded, privatizer, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("page") / "ledger.sqlite"
    training = training_setting(privatizer, allow_weak=True)
    with running_gateway(recorded, privatizer, ledger=ledger, training=training, page=True) as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def page(base):
    with open_client(base, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def send(client, path, body, **headers):
    if body is None:
        return client.get(path, headers=headers)
    if isinstance(body, bytes):
        return client.post(path, content=body, headers={"content-type": "application/octet-stream", **headers})
    return client.post(path, json=body, headers=headers)


def drop(client, content, **head):
    answer = send(client, "/own/file", json.dumps({"kind": "csv", **head}).encode() + b"\n" + content)
    return answer.json()


def counted(client):
    return client.get("/own/ledger").json()["releases"]


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_a_page_of_another_origin_a_proxy_and_a_stranger_are_refused_before_anything_is_done(
    page, base, path, recorder
):
    before, sent = counted(page), len(recorder.sent)
    body, key = ROUTES[path], {"authorization": f"Bearer {KEY}"}
    port = base.rpartition(":")[2]
    refused = {
        "another page": {"origin": "https://example.org", "sec-fetch-site": "cross-site"},
        "another port of this machine": {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
        "a form or an image": {"sec-fetch-site": "cross-site"},
        "no origin at all": {"origin": "null"},
        "a rebound name": {"host": f"rebound.example:{port}", "origin": f"http://rebound.example:{port}"},
        "a proxy": {"x-forwarded-for": "10.0.0.1"},
    }
    with open_client(base) as stranger:
        for who, headers in refused.items():
            assert send(stranger, path, body, **key, **headers).status_code == 403, who
        assert send(stranger, path, body).status_code == 401
        assert send(stranger, path, body, authorization="Bearer " + "x" * 43).status_code == 401
        preflight = stranger.options(path, headers={"origin": "https://example.org"})
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
    assert (counted(page), len(recorder.sent)) == (before, sent)


@pytest.mark.parametrize("path", [path for path, body in ROUTES.items() if body is not None])
def test_a_form_of_another_kind_is_refused_so_that_no_simple_request_does_anything(page, path):
    body = ROUTES[path] if isinstance(ROUTES[path], bytes) else json.dumps(ROUTES[path])
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = page.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == 400, kind
        assert "zeppelin" not in answer.text


def test_the_files_of_the_page_need_no_key_and_may_load_nothing_else(base):
    with open_client(base) as stranger:
        for path in OPEN_PATHS:
            answer = stranger.get(path)
            assert answer.status_code == 200, path
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert KEY not in answer.text
            assert stranger.get(path, headers={"host": "rebound.example"}).status_code == 403
            assert stranger.post(path).status_code == 401
        assert stranger.get("/page/routes.py").status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/own/look", {"text": "a" * 2001, "strength": 40}, 400),
        ("/own/look", {"text": " ", "strength": 40}, 400),
        ("/own/look", {"text": SECRET, "strength": 0}, 400),
        ("/own/look", {"text": SECRET, "strength": True}, 400),
        ("/own/look", {"text": [SECRET], "strength": 40}, 400),
        ("/own/look", {"text": SECRET, "strength": 40, "note": 1}, 400),
        ("/own/look", {"text": SECRET}, 400),
        ("/own/ask", {"text": SECRET, "model": "zeppelin"}, 404),
        ("/own/ask-at-home", {"text": SECRET, "model": "bert-tiny"}, 400),
        ("/own/file", b"zeppelin", 400),
        ("/own/file", b'{"kind":"xlsx"}\nzeppelin', 400),
        ("/own/file", b'{"kind":"csv","text_column":"text"}\nnote\nzeppelin\n', 400),
        ("/own/file", b'{"kind":"jsonl"}\n{"text": zeppelin}', 400),
        ("/own/file", b'{"kind":"csv","text_column":"text"}\ntext\nthe soup, the zeppelin\n', 400),
        ("/own/file", b'{"kind":"csv","text_column":"zeppelin"}\nzeppelin,zeppelin\nsoup,cold\n', 400),
        ("/own/file", b'{"kind":"csv"}\n' + b"x" * (16 * 2**20 + 4097), 413),
    ],
    ids=range(16),
)
def test_what_is_refused_is_refused_in_one_line_that_quotes_no_text(page, path, body, status, caplog):
    answer = send(page, path, body)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]["message"]
    assert "zeppelin" not in answer.text + caplog.text


def test_a_look_draws_what_could_leave_and_counts_and_sends_nothing(page, recorder):
    before, sent = counted(page), len(recorder.sent)
    weak, strong = (
        send(page, "/own/look", {"text": "the soup was cold", "strength": eta}).json() for eta in (1000, 0.01)
    )
    assert [token["token"] for token in weak["tokens"]] == ["the", "soup", "was", "cold"] == weak["example"]
    # At η = 1000 half of the way to a nearest row, 0.21 or more, is 19 deviations of the noise along a line (0.0113).
    # At 0.01 no output has a share above 0.01 (15 of 4,000 draws at most): half of 512 draws, or four outputs in all,
    # is less likely than 1e-100.
    assert all(token["kept"]["value"] == 1 and not token["others"] for token in weak["tokens"])
    assert weak["own"]["severity"] == Severity.BAD == weak["running"]["severity"]
    assert all(token["kept"]["value"] < 0.5 and len(token["others"]) == 5 for token in strong["tokens"])
    assert strong["running"]["value"] < weak["running"]["value"]
    for token in strong["tokens"]:
        shares = [share for _, share in token["others"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) + token["kept"]["value"] <= 1 + 1e-9
        assert token["kept"]["severity"] == weigh_attack(token["kept"]["value"], blind=strong["blind"])
    assert (counted(page), len(recorder.sent)) == (before, sent)


def test_a_text_beyond_the_first_tokens_says_how_many_are_left_out(page):
    found = send(page, "/own/look", {"text": "soup " * 200, "strength": 40})
    assert found.status_code == 200
    assert len(found.json()["tokens"]) + found.json()["left_out"] == 40  # where the setting cuts a text


def test_a_strength_is_stated_in_words_and_only_a_measured_setting_has_figures(page):
    stated = send(page, "/own/statement", {"strength": 40}).json()
    assert stated["says"].startswith("Protected: each single token")
    assert stated["bounds"][0]["severity"] == weigh_attack(stated["bounds"][0]["right"], blind=0.5)
    assert {one["what"] for one in stated["not_protected"]} >= {"context"}
    setting = page.get("/own/setting").json()
    assert (setting["unit"], setting["strength"], setting["figures"]) == ("token", 40, None)
    assert setting["lowest"] < 40 < setting["highest"]


def test_a_dropped_file_asks_for_its_columns_and_becomes_a_privatized_file_that_is_counted_once(page, recorder):
    content = b"note,review,stars\n" + b"".join(b"x%d,the soup was %d,%d\n" % (i, i, i % 2) for i in range(6))
    before, sent = counted(page), len(recorder.sent)
    assert drop(page, content) == {"columns": ["note", "review", "stars"], "records": 6}
    assert counted(page) == before
    found = drop(page, content, text_column="review", label_column="stars")
    file = read_privatized_lines(found["file"].encode().splitlines(keepends=True))
    assert (len(file.records), file.manifest.labels, file.manifest.arrangement.shuffled) == (6, ("0", "1"), True)
    assert file.manifest.plain_tokens.count == 2
    assert sorted(file.manifest.labels[record.label] for record in file.records) == [*"000111"]
    assert counted(page) == before + 6
    again = drop(page, content, text_column="review", label_column="stars")
    assert sorted(json.loads(line)["token_ids"] for line in again["file"].splitlines()[1:]) == sorted(
        list(record.token_ids) for record in file.records
    )
    assert counted(page) == before + 6, "a text that comes again leaves as it did at first"
    assert found["statement"]["says"].startswith("Protected: each single token")
    assert [one["label"] in ("0", "1") for one in found["preview"]] == [True] * 3
    assert "% of the tokens of these texts stay" in found["remark"]
    assert len(recorder.sent) == sent


def test_queries_keep_their_order_and_have_no_label(page):
    found = drop(page, b"text\nsoup one\nsoup two\nsoup three four\n", text_column="text")
    file = read_privatized_lines(found["file"].encode().splitlines(keepends=True))
    assert (file.manifest.labels, file.manifest.targets, file.manifest.arrangement.shuffled) == (None, None, False)
    assert [len(record.token_ids) for record in file.records] == [2, 2, 3]


def test_a_column_of_texts_is_not_taken_for_labels(page):
    content = b"text,label\n" + b"".join(b"soup,the zeppelin number %d\n" % i for i in range(8))
    answer = drop(page, content, text_column="text", label_column="label")
    assert "labels must be classes of several records" in answer["error"]["message"]
    assert answer["error"]["message"].endswith("choose the column of classes, or list the labels")  # no option to give
    assert "zeppelin" not in json.dumps(answer)


def test_the_ledger_is_shown_in_counts_without_a_text_or_a_hash(page):
    drop(page, b"text\nzeppelin\n", text_column="text")
    answer = page.get("/own/ledger")
    found = answer.json()
    assert found["releases"] == sum(one["releases"] for one in found["settings"]) > 0
    assert found["settings"][0]["mechanism"] == "laplace, η = 40"
    assert found["budgets"]["metric"]["in_all"] == pytest.approx(40 * found["tokens"])
    assert (found["budgets"]["metric"]["used"], found["budgets"]["metric"]["severity"]) == (None, Severity.PLAIN)
    assert "zeppelin" not in answer.text
    assert "hash" not in answer.text
    assert "head" not in answer.text


def test_a_model_of_a_dropped_file_is_asked_privately_and_at_home_and_each_way_says_what_left(
    page, service, recorder, tmp_path
):
    rows = b"".join(b"%s soup,%d\n" % ((b"cold", b"warm")[i % 2], i % 2) for i in range(8))
    file = tmp_path / "soup.rapt.jsonl"
    file.write_text(drop(page, b"text,label\n" + rows, text_column="text", label_column="label")["file"])
    with open_client(service) as http:
        method = {"type": "linear_probing", "linear_probing": {"hyperparameters": {"n_epochs": 1}}}
        made = upload(http, file).json()["id"]
        model = done_job(http, {"model": "bert-tiny", "training_file": made, "method": method})["fine_tuned_model"]
    asked = {"text": "the zeppelin soup", "model": model}
    before = counted(page)
    private = page.post("/own/ask", json=asked).json()
    assert counted(page) == before + 1
    ids = json.dumps({"token_ids": private["left"]["ids"]}, separators=(",", ":"))[1:-1]
    assert ids.encode() in recorder.sent.replace(b" ", b"")
    assert private["left"]["manifest"]["tokens"] == len(private["left"]["ids"])
    assert private["answer"]["labels"] == ["0", "1"]
    posted = recorder.sent.count(b"POST /")
    home = page.post("/own/ask-at-home", json=asked).json()["answer"]
    assert (home["labels"], home["fetched"], counted(page)) == (["0", "1"], True, before + 1)
    assert sum(home["probabilities"]) == pytest.approx(1)
    again = page.post("/own/ask-at-home", json=asked).json()["answer"]
    assert again == {**home, "fetched": False}
    assert recorder.sent.count(b"POST /") == posted, "an answer at home fetches files, and sends nothing of a text"
    assert b"zeppelin" not in recorder.sent


def test_a_look_at_a_code_shows_what_the_bound_lets_an_attacker_name_and_how_near_the_draw_is():
    privatizer = code_privatizer(load_vocabulary("bert-tiny"), size=32, run=4)
    for epsilon, severity in ((0.01, Severity.GOOD), (2.0, Severity.CAUTION), (12.0, Severity.BAD)):
        found = look_at_code(set_strength(privatizer, epsilon), "the soup was cold", stream=secure_stream())
        assert [guess.right for guess in found.guesses] == [
            bound_guess(epsilon, among=guess.among) for guess in found.guesses
        ]
        assert found.severity is severity
        assert 1 <= found.ranks[0] <= found.codewords == 32
        assert found.odds <= math.exp(epsilon) * (1 + 1e-9)
        assert 0 < found.near < 1
        assert "soup" not in repr(found)
    assert set_strength(privatizer, privatizer.mechanism.epsilon).mechanism is privatizer.mechanism


def test_a_look_under_a_policy_shows_the_rewritten_text_and_remembers_no_name(privatizer, tmp_path):
    policy = Policy.make(
        {"ticket": "pseudonym"}, patterns={"ticket": r"zeppelin-\d+"}, pseudonyms=tmp_path / "names.map"
    )
    found = look_at_tokens(PolicyPrivatizer(privatizer, policy), "see zeppelin-77 now", stream=secure_stream())
    words = "".join(token.token.removeprefix("##") for token in found.tokens)
    assert words.startswith("seeticket-")
    assert "zeppelin" not in words
    assert (len(policy.names), (tmp_path / "names.map").exists()) == (0, False)


def test_the_figures_of_the_page_follow_from_the_kept_lines():
    assert FIGURES.read_text(encoding="utf-8") == write_figures()


def test_each_figure_has_its_n_its_interval_and_its_lines_and_57_of_100_is_bad():
    found = [
        find_figures(PUBLIC_MODELS["minilm"].vocabulary, "laplace"),
        find_figures(PUBLIC_CODES["minilm-codes"], "subset"),
    ]
    for known in found:
        assert all((RESULTS / name).is_file() for name in known["lines"])
        for point in known["points"]:
            for one in (point["named"], *point["right"]):
                assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
                assert one["n"] > 0
    assert {point["at"]: point["named"]["severity"] for point in found[0]["points"]}[75.0] is Severity.BAD
    assert find_figures(PUBLIC_MODELS["minilm"].vocabulary, "exponential") is None
    assert find_figures("sha256:" + "0" * 64, "laplace") is None

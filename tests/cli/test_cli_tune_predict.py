"""`rapt tune`, `rapt predict` and `rapt vocabulary fetch` against a real service on loopback."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from http_requests import ENDLESS
from rapt.cli.program import run
from running_service import running_service
from strange_service import answering

PRIVATIZE = ("--eta", 60, "--vocabulary", "few-words", "--plain-tokens", 4, "--plain-token-pool", 20)
QUICK = ("--epochs", 1, "--prompt-length", 2, "--seed", 3)


@pytest.fixture(scope="module")
def privatized(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trusted")
    rows = "".join(f"the food was {'good' if i % 2 else 'bad'} today,{'yes' if i % 2 else 'no'}\n" for i in range(20))
    (folder / "reviews.csv").write_text("text,label\n" + rows)
    assert run([str(item) for item in ("privatize", folder / "reviews.csv", folder / "train", *PRIVATIZE)]) == 0
    arguments = ("privatize", folder / "reviews.csv", folder / "queries", *PRIVATIZE, "--no-label")
    assert run([str(item) for item in arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(service, privatized: Path) -> str:
    from rapt.local.client import ServiceClient

    with ServiceClient(service) as client:
        uploaded = client.upload(privatized / "train")
        hyperparameters = {"n_epochs": 1, "num_virtual_tokens": 2}
        job = client.create_job(
            file_id=uploaded.id,
            model="few-words",
            method={"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters}},
        )
        name = client.wait(job.id, seconds_between=0.05).fine_tuned_model
    assert name is not None
    return name


def test_tuning_prints_the_name_of_the_model_alone_on_stdout(rapt, service, privatized: Path):
    outcome = rapt("tune", privatized / "train", "--service", service, *QUICK, "--suffix", "food")
    assert outcome.code == 0
    assert re.fullmatch(r"ft:few-words:local:food:\S+\n", outcome.out)
    assert "reconstruction λ=" in outcome.err
    assert "loss" in outcome.err


def test_tuning_without_reconstruction_says_so(rapt, service, privatized: Path):
    outcome = rapt(
        "tune", privatized / "train", "--service", service, *QUICK, "--no-reconstruction", "--priority", 4, "--json"
    )
    printed = json.loads(outcome.out)
    shown = httpx2.get(f"{service}/v1/fine_tuning/jobs/{printed['job']}", trust_env=False).json()
    assert shown["rapt"]["priority"] == 4
    assert printed["method"]["prompt_tuning"]["hyperparameters"]["reconstruction"] is None
    assert printed["seed"] == 3
    assert "no reconstruction" in outcome.err


def test_predictions_go_to_stdout_one_a_line(rapt, service, privatized: Path, tuned):
    outcome = rapt("predict", privatized / "queries", "--service", service, "--model", tuned)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(rows) == 20
    assert set(rows[0]["probabilities"]) == {"no", "yes"}
    assert {row["label"] for row in rows} <= {"no", "yes"}
    assert "right" not in outcome.err


def test_a_tuned_model_is_written_as_a_folder_for_others_or_for_another_service(rapt, service, tuned, tmp_path: Path):
    hub, own = tmp_path / "hub", tmp_path / "own"
    outcome = rapt("export", tuned, hub, "--service", service)
    assert (outcome.code, outcome.out) == (0, f"{hub}\n")
    assert {path.name for path in hub.iterdir()} == {
        *("README.md", "rapt.json", "adapter_model.safetensors", "adapter_config.json", "task_head.safetensors")
    }
    assert "eta=60" in (hub / "README.md").read_text()
    assert rapt("export", tuned, own, "--service", service, "--form", "rapt").code == 0
    with httpx2.Client(base_url=service, trust_env=False) as http:
        parts = {"card": "rapt.json", "weights": "adapter_model.safetensors", "config": "adapter_config.json"}
        files = {part: (name, (own / name).read_bytes()) for part, name in parts.items()}
        assert http.post("/v1/adapters", files=files).status_code == 200
    for arguments, code in (
        ((tuned, hub), 2),  # it is there
        (("few-words", tmp_path / "base"), 9),
        ((tuned, tmp_path / "other", "--form", "zip"), 2),
        ((tuned, hub / "README.md" / "below"), 3),
    ):
        assert rapt("export", *arguments, "--service", service).code == code
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "own"}


def test_labels_of_a_file_stay_and_are_compared(rapt, service, privatized: Path, tuned):
    outcome = rapt("predict", privatized / "train", "--service", service, "--model", tuned, "--json")
    printed = json.loads(outcome.out)
    assert printed["records"] == 20
    assert 0 <= printed["right"] <= 20
    assert f"right: {printed['right']} of 20" in outcome.err


def test_predictions_can_be_written_as_csv(rapt, service, privatized: Path, tuned, tmp_path: Path):
    out = tmp_path / "answers.csv"
    assert rapt("predict", privatized / "queries", "--service", service, "--model", tuned, "--out", out).code == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["label", "p(no)", "p(yes)"]
    assert len(rows) == 20
    again = rapt("predict", privatized / "queries", "--service", service, "--model", tuned, "--out", out)
    assert (again.code, "--overwrite" in again.err) == (2, True)


def test_ids_and_columns_of_the_source_stand_before_the_answers(rapt, service, privatized: Path, tuned, tmp_path: Path):
    source = tmp_path / "source.jsonl"
    rows = [{"text": f"the food was good {i}", "id": i if i % 2 else f"n-{i}", "when": None} for i in range(6)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rapt("privatize", source, tmp_path / "q", *PRIVATIZE, "--no-label").code == 0
    ask = ("predict", tmp_path / "q", "--service", service, "--model", tuned)
    kept = (*ask, "--original", source, "--id-column", "id")
    answers = [json.loads(line) for line in rapt(*kept, "--keep", "when").out.splitlines()]
    assert [row["id"] for row in answers] == [row["id"] for row in rows]
    assert list(answers[0]) == ["id", "when", "label", "probabilities"]
    assert rapt(*kept, "--out", tmp_path / "a.csv").code == 0
    with (tmp_path / "a.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert (list(table[0]), [row["id"] for row in table]) == (
        ["id", "label", "p(no)", "p(yes)"],
        ["n-0", *"1", "n-2", *"3", "n-4", *"5"],
    )
    at_home = rapt("predict", source, "--local", "--model", tuned, "--service", service, "--id-column", "id")
    assert [json.loads(line)["id"] for line in at_home.out.splitlines()] == [row["id"] for row in rows]
    with source.open("a") as stream:
        stream.write('{"text": " ", "id": "none"}\n')
    skipping = (*kept, "--text-column", "text")
    assert len(rapt(*skipping).out.splitlines()) == 6
    assert "got 7 records for 6 queries" in rapt(*kept).err
    assert rapt("privatize", source, tmp_path / "s", "--skip-empty", *PRIVATIZE, "--no-label", "--shuffle").code == 0
    for arguments, said in (
        ((*ask, "--id-column", "id"), "--original"),
        ((*ask, "--original", source), "--id-column"),
        ((*kept, "--keep", "id"), "once"),
        ((*ask, "--original", privatized / "reviews.csv", "--id-column", "text"), "got 20 records for 6"),
        (("predict", tmp_path / "s", *skipping[2:]), "--keep-order"),
        (
            ("predict", privatized / "train", *ask[2:], "--original", privatized / "reviews.csv", "--keep", "label"),
            "rename",
        ),
        ((*ask, "--original", source, "--local", "--keep", "id"), "leave it out"),
    ):
        refused = rapt(*arguments)
        assert (refused.code, refused.out, refused.err.count("\n"), said in refused.err) == (2, "", 1, True), (
            refused.err
        )


def test_a_fetched_vocabulary_privatizes_like_the_installed_one(rapt, service, reviews: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    assert rapt("vocabulary", "fetch", folder, "--service", service, "--model", "few-words").out == f"{folder}\n"
    for vocabulary in ("few-words", folder):
        name = "a" if vocabulary == folder else "b"
        options = ("--eta", 20, "--insecure-seed", 1, "--vocabulary", vocabulary)
        assert rapt("privatize", reviews, tmp_path / name, *options).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_the_service_refuses_is_one_line(rapt, service, privatized: Path, reviews: Path, tuned, tmp_path: Path):
    at = ("--service", service)
    other = tmp_path / "other"
    rapt("privatize", reviews, other, "--eta", 61, "--vocabulary", "few-words", "--plain-tokens", 4)
    (tmp_path / "cut").write_bytes((privatized / "train").read_bytes()[:-40])
    for arguments, code, said in [
        (("tune", reviews, *at), 4, "the first line must be"),
        (("tune", tmp_path / "cut", *at), 4, "record"),
        (("tune", privatized / "queries", *at), 9, "label"),
        (("tune", privatized / "train", *at, "--epochs", 10**9), 9, "n_epochs"),
        (("tune", privatized / "train", *at, "--method", "magic"), 9, "refused"),
        (
            ("tune", privatized / "train", *at, "--no-reconstruction", "--reconstruction-weight", 1),
            2,
            "must be given without",
        ),
        (("tune", privatized / "train", "--service", "ftp://nowhere"), 2, "URL"),
        (("tune", *at), 2, "or --follow JOB"),
        (("tune", privatized / "train", *at, "--follow", "ftjob-1"), 2, "or --follow JOB"),
        (("tune", *at, "--follow", "ftjob-1", "--epochs", 3), 2, "takes a job with its settings"),
        (("tune", *at, "--follow", "ftjob-1"), 9, "404"),
        (("tune", privatized / "train", *at, "--model", "none"), 9, "404"),
        (("tune", privatized / "train", "--service", "http://example.org", "--api-key", "k-1"), 2, "--insecure"),
        (
            ("predict", privatized / "queries", "--service", "http://example.org", "--api-key", "k-1", "--model", "m"),
            2,
            "--insecure",
        ),
        (
            ("vocabulary", "fetch", tmp_path / "v", "--service", "http://example.org", "--api-key", "k-1"),
            2,
            "--insecure",
        ),
        (("tune", privatized / "train", "--service", "http://127.0.0.1:9"), 9, "must be reachable"),
        (("predict", privatized / "queries", *at, "--model", "ft:few-words:no:such"), 9, "404"),
        (("predict", privatized / "queries", *at, "--model", "few-words"), 2, "a tuned one"),
        (("predict", other, *at, "--model", tuned), 2, "labels of the model"),
        (("predict", privatized / "queries", *at, "--model", tuned, "--out", "x.xml"), 2, ".jsonl or .csv"),
        (("vocabulary", "fetch", tmp_path / "v", *at, "--model", "none"), 9, "404"),
        (("vocabulary", "fetch", tmp_path, *at), 2, "must not exist"),
    ]:
        outcome = rapt(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), arguments
        errors = [line for line in outcome.err.splitlines() if line.startswith("rapt: error: ")]
        assert len(errors) == 1
        assert said in errors[0]
    assert not (tmp_path / "v").exists()


def test_queries_at_another_eta_are_refused(rapt, service, tuned, reviews: Path, tmp_path: Path):
    options = ("--eta", 61, "--vocabulary", "few-words", "--plain-tokens", 4, "--no-label")
    rapt("privatize", reviews, tmp_path / "queries", *options)
    outcome = rapt("predict", tmp_path / "queries", "--service", service, "--model", tuned)
    assert outcome.code == 9
    assert "with laplace at eta=60, got another setting" in outcome.err


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("p_tuning", ("--prompt-length", 2, "--encoder", "lstm"), "encoder=lstm"),
        ("prefix_tuning", ("--prompt-length", 2, "--init", "text", "--init-text", "good food"), "initialization=text"),
        ("lora", ("--rank", 2, "--target", "query", "--reconstruction-schedule", "fall"), "target_modules=['query']"),
        ("linear_probing", ("--learning-rate", 0.02), "learning_rate=0.02, no reconstruction"),
    ],
)
def test_every_method_is_an_option_and_its_model_predicts(rapt, service, privatized: Path, method, options, named):
    arguments = ("--epochs", 1, "--seed", 3, "--method", method, *options)
    outcome = rapt("tune", privatized / "train", "--service", service, *arguments)
    assert outcome.code == 0
    assert f"{method}, " in outcome.err
    assert named in outcome.err
    answered = rapt("predict", privatized / "queries", "--service", service, "--model", outcome.out.strip())
    assert len(answered.out.splitlines()) == 20


def test_an_option_of_another_method_is_refused_in_one_line(rapt, service, privatized: Path):
    outcome = rapt("tune", privatized / "train", "--service", service, "--method", "lora", "--prompt-length", 2)
    assert outcome.code != 0
    assert "num_virtual_tokens" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_job_is_followed_again_to_its_model(rapt, service, privatized: Path, tuned):
    jobs = httpx2.get(f"{service}/v1/fine_tuning/jobs?limit=100", trust_env=False).json()["data"]
    job = next(job for job in jobs if job["fine_tuned_model"] == tuned)
    outcome = rapt("tune", "--follow", job["id"], "--service", service)
    assert (outcome.code, outcome.out) == (0, f"{tuned}\n")
    printed = json.loads(rapt("tune", "--follow", job["id"], "--service", service, "--json").out)
    assert (printed["job"], printed["file"]) == (job["id"], job["training_file"])


def test_a_job_that_nobody_waits_for_is_named_followed_and_chosen_by_other_texts(rapt, service, privatized: Path):
    arguments = ("tune", privatized / "train", "--service", service, *QUICK, "--no-reconstruction")
    asked = rapt(*arguments, "--validation", privatized / "train", "--patience", 2, "--no-wait")
    assert re.fullmatch(r"ftjob-\w+\n", asked.out)
    job = asked.out.strip()
    assert rapt("tune", "--follow", job, "--service", service).out.startswith("ft:few-words:")
    shown = httpx2.get(f"{service}/v1/fine_tuning/jobs/{job}", trust_env=False).json()
    assert shown["validation_file"] == shown["training_file"]
    assert shown["method"]["prompt_tuning"]["hyperparameters"]["patience"] == 2
    for options, said in (
        (("--patience", 2), "--validation"),
        (("--validation", privatized / "queries"), "label"),
        (("--validation", privatized / "reviews.csv"), "the first line must be"),
    ):
        refused = rapt(*arguments, *options)
        assert (refused.code == 0, refused.out, said in refused.err) == (False, "", True)
    assert rapt("tune", "--follow", job, "--no-wait", "--service", service).code == 2


def test_what_a_service_keeps_is_listed_shown_and_deleted(rapt, service, privatized: Path):
    def ask(*arguments):
        outcome = rapt(*arguments, "--service", service, "--json")
        return json.loads(outcome.out) if outcome.code == 0 else outcome.code

    done = ask("tune", privatized / "train", *QUICK, "--suffix", "kept")
    made = ask("tune", privatized / "train", "--epochs", 1000, "--batch-size", 1, "--no-wait")
    job, file, model = made["job"], made["file"], done["model"]
    assert [item["job"] for item in ask("jobs", "list")["jobs"]][:2] == [job, done["job"]]
    assert ask("jobs", "show", done["job"])["model"] == model
    seed = ask("jobs", "show", done["job"])["seed"]
    assert str(seed) in rapt("jobs", "show", done["job"], "--service", service).out.split()
    table = rapt("jobs", "list", "--service", service).out
    assert re.search(rf"{done['job']}  succeeded +few-words +\d{{4}}-\d\d-\d\d \d\d:\d\d +{model}", table)
    assert ask("files", "delete", file) == 9  # a job needs it
    assert ask("jobs", "pause", job)["status"] == "paused"
    assert ask("jobs", "pause", job) == 9
    assert ask("jobs", "resume", job)["status"] == "queued"
    assert ask("jobs", "checkpoints", job) == {"checkpoints": []}
    assert ask("jobs", "cancel", job)["status"] == "cancelled"
    assert ask("jobs", "cancel", job) == 9
    kept = ask("files", "show", file)
    assert (kept["records"], kept in ask("files", "list")["files"]) == (20, True)
    shown = ask("models", "show", model)
    assert (shown["labels"], shown["queries"]) == (["no", "yes"], "laplace at eta=60")
    assert {"few-words", model} <= {item["model"] for item in ask("models", "list")["models"]}
    assert ask("models", "delete", model) == {"model": model, "deleted": True}
    assert ask("models", "show", model) == 9
    assert ask("files", "delete", file) == {"file": file, "deleted": True}
    assert ask("files", "show", file) == 9


def test_a_list_of_jobs_has_every_page_and_an_end(rapt):
    item = {"id": "ftjob-1", "model": "m", "training_file": "f", "status": "queued", "method": {}, "seed": 1}

    def endless(path, body):
        return 200, {}, json.dumps({"data": [item | {"error": None}] * 100, "has_more": True}).encode()

    def two_pages(path, body):
        return (
            200,
            {},
            json.dumps({"data": [item] * (3 if "after" in path else 100), "has_more": "after" not in path}).encode(),
        )

    for answer, number in ((two_pages, 103), (endless, 1000)):
        with answering(answer) as url:
            assert len(json.loads(rapt("jobs", "list", "--service", url, "--json").out)["jobs"]) == number


def test_interrupting_cancels_a_job_that_was_begun_here_and_not_one_that_is_followed(
    rapt, service, privatized: Path, monkeypatch
):
    from rapt.local.client import ServiceClient

    def interrupt(self, job_id, **_):
        followed.append(job_id)
        raise KeyboardInterrupt

    followed: list[str] = []
    monkeypatch.setattr(ServiceClient, "follow", interrupt)
    assert rapt("tune", privatized / "train", "--service", service, "--epochs", 1000).code == 130
    with ServiceClient(service) as client:
        assert client.job(followed[0]).status == "cancelled"
        job = client.create_job(
            file_id=client.upload(privatized / "train").id,
            model="few-words",
            method={"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": ENDLESS}},
        )
        assert rapt("tune", "--follow", job.id, "--service", service).code == 130
        assert client.job(job.id).status in ("queued", "running")
        client.cancel_job(job.id)


def test_the_base_model_is_the_one_with_the_vocabulary_of_the_file(rapt, privatized: Path, backbones, tmp_path_factory):
    backbone = backbones["few-words"]
    arguments = ("tune", privatized / "train", *QUICK)
    two = {"first": replace(backbone, model="first"), "second": replace(backbone, model="second")}
    with running_service(tmp_path_factory.mktemp("two"), backbones=two) as url:
        several = rapt(*arguments, "--service", url)
        assert (several.code, "(first, second); name one as --model" in several.err) == (2, True)
        assert httpx2.get(f"{url}/v1/files", trust_env=False).json()["data"] == []
        assert rapt(*arguments, "--service", url, "--model", "second").out.startswith("ft:second:")
    with running_service(tmp_path_factory.mktemp("one"), backbones={"first": two["first"]}) as url:
        only = rapt(*arguments, "--service", url)
        assert only.out.startswith("ft:first:")
        assert "under another name: tuning first" in only.err


@pytest.fixture
def many(rapt, tmp_path: Path) -> Path:
    (tmp_path / "many.csv").write_text("text\n" + "the food was good today\n" * 600)
    assert rapt("privatize", tmp_path / "many.csv", tmp_path / "many", *PRIVATIZE, "--no-label").code == 0
    return tmp_path / "many"


def test_predictions_of_a_run_that_was_cut_off_are_kept_and_the_rest_is_asked_for(
    rapt, service, tuned, many: Path, tmp_path: Path
):
    out, asked = tmp_path / "answers.jsonl", []

    def forward(fails_after):
        def answer(path, body, headers, method):
            asked.append(path)
            if asked.count("/v1/classify") > fails_after:
                return 400, {}, b'{"error": {"message": "no more"}}'
            response = httpx2.request(method, service + path, content=body, headers=headers, trust_env=False)
            return response.status_code, {"content-type": "application/json"}, response.content

        return answer

    arguments = ("--model", tuned, "--out", out)
    with answering(forward(2)) as url:
        cut = rapt("predict", many, "--service", url, *arguments)
    assert (cut.code, out.exists()) == (9, False)
    assert "512 predictions are kept; the same command asks for the rest" in cut.err
    (tmp_path / "other").write_bytes(many.read_bytes())
    rapt("privatize", tmp_path / "many.csv", tmp_path / "other", *PRIVATIZE, "--no-label", "--overwrite")
    other = rapt("predict", tmp_path / "other", "--service", service, *arguments)
    assert (other.code, "must not be lost" in other.err) == (2, True)
    asked.clear()
    with answering(forward(99)) as url:
        assert rapt("predict", many, "--service", url, *arguments).code == 0
    assert asked.count("/v1/classify") == 1
    kept = out.read_text()
    assert not (tmp_path / "answers.jsonl.partial").exists()
    assert rapt("predict", many, "--service", service, *arguments, "--overwrite").code == 0
    # Other batches add up in another order, so that a label between two of them could change, and its probability not.
    first, second = (
        [json.loads(line)["probabilities"]["yes"] for line in text.splitlines()] for text in (kept, out.read_text())
    )
    assert first == pytest.approx(second, abs=1e-4)


def test_a_file_of_somebody_else_where_predictions_are_kept_stays(rapt, service, tuned, many: Path, tmp_path: Path):
    (tmp_path / "a.jsonl.partial").write_text("mine")
    for overwrite in ((), ("--overwrite",)):
        arguments = ("predict", many, "--service", service, "--model", tuned, "--out", tmp_path / "a.jsonl", *overwrite)
        assert rapt(*arguments).code == 2
    assert (tmp_path / "a.jsonl.partial").read_text() == "mine"
    link = tmp_path / "l.jsonl"
    link.symlink_to(tmp_path / "none")
    refused = rapt("predict", many, "--service", service, "--model", tuned, "--out", link, "--overwrite")
    assert (refused.code, link.is_symlink()) == (2, True)
    same = rapt(
        "predict",
        many.rename(tmp_path / "many.jsonl"),
        "--service",
        service,
        "--model",
        tuned,
        "--out",
        tmp_path / "many.jsonl",
        "--overwrite",
    )
    assert (same.code, "another file than the queries" in same.err) == (2, True)

"""`rapt gateway`: one command before a real service, asked by the official client, stopped and started again."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from http_requests import open_client
from strange_service import answering

ASKED = ("--eta", "1", "--vocabulary", "few-words", "--labels", "negative,positive")


def started(service, folder, *asked):
    command = [sys.executable, "-m", "rapt", "gateway", "--service", service, "--port", "0", *asked]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_program_changes_its_base_url_and_the_ledger_counts_once(service, reviews, tmp_path, never_shows):
    files = []
    for has_page in (True, False):  # the second one finds the releases of the first
        process = started(service, tmp_path, *ASKED, *(() if has_page else ("--no-page",)))
        try:
            ready = json.loads(process.stdout.readline())
            key_file = Path(ready["key_file"])
            assert key_file.stat().st_mode & 0o777 == 0o600
            assert ("page" in ready) is has_page
            with open_client(ready["base_url"].removesuffix("v1")) as stranger:
                assert stranger.get("/").status_code == (200 if has_page else 401)
            with openai.OpenAI(base_url=ready["base_url"], api_key=key_file.read_text().strip()) as client:
                file = client.files.create(file=(reviews.name, reviews.read_bytes()), purpose="fine-tune")
                content = client.files.content(file.id).text
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        never_shows(content + err)
        files.append(sorted(json.loads(line)["token_ids"] for line in content.splitlines()[1:]))
    assert files[0] == files[1]
    assert "of the tokens of running public text stay as they are at eta=1" in err
    assert "0 texts released, 6 answered by earlier releases of theirs" in err


def test_words_leave_under_a_policy_for_any_service(tmp_path):
    (tmp_path / "policy.toml").write_text('[kinds]\nemail = "mask"\n')
    got = []

    def answer(path, body):
        got.append((path, body))
        listed = b'{"data": [{"id": "other"}]}'
        return 200, {}, listed if path == "/v1/models" else b'{"choices": [{"message": {"content": "yes"}}]}'

    with answering(answer) as url:
        process = started(f"{url}/v1", tmp_path, "--words", "--policy", "policy.toml")
        try:
            ready = json.loads(process.stdout.readline())
            key = Path(ready["key_file"]).read_text().strip()
            with openai.OpenAI(base_url=ready["base_url"], api_key=key) as client:
                asked = [{"role": "user", "content": "write to ann@example.org"}]
                said = client.chat.completions.create(model="other", messages=asked).choices[0].message.content
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (0, "", "yes")
    assert "leave in clear, and nothing counts them" in err
    assert json.loads(got[-1][1]) == {"model": "other", "messages": [{"role": "user", "content": "write to [EMAIL]"}]}


@pytest.mark.parametrize(
    ("asked", "code", "rule"),
    [
        (("--eta", "75", "--epsilon", "4"), 2, "one guarantee must be named"),
        (("--epsilon", "4", "--truncate", "8"), 2, "must not stand beside --epsilon"),
        (("--eta", "75", "--host", "0.0.0.0"), 2, "must listen on this machine alone"),
        (("--eta", "40000", "--vocabulary", "few-words"), 6, "--allow-weak"),
        (("--eta", "75", "--label-epsilon", "1"), 2, "must come with --labels"),
        (("--words",), 2, "or --policy alone"),
        (("--words", "--eta", "75", "--labels", "a,b"), 2, "must not stand beside --words"),
        (("--words", "--eta", "75", "--vocabulary", "few-words"), 2, "replaced by whole words"),
        (("--policy", "missing.toml", "--eta", "75"), 2, "a policy must be readable"),
    ],
    ids=["two", "unit", "host", "weak", "labels", "words", "classes", "pieces", "policy"],
)
def test_a_setting_that_betrays_is_refused_in_one_line_before_anything_listens(
    asked, code, rule, rapt, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = rapt("gateway", "--service", "http://127.0.0.1:9", "--port", "0", *asked)
    assert (found.code, found.out, found.err.count("\n")) == (code, "", 1)
    assert rule in found.err
    assert list(tmp_path.iterdir()) == []

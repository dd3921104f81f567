"""Names of the Hugging Face hub: found in its local cache by our own few lines, and fetched by one command alone."""

import hashlib
import json

import pytest
from huggingface_hub import snapshot_download

import strange_service
from rapt.errors import UnavailableError, UsageError, VocabularyError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import download_model, find_hub_cache, find_model_folder, name_model
from rapt.service.http.settings import name_served_model
from tokenizer_zoo import gpt2

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "hub"


def put(cache, model, *, commit=COMMIT):
    root = cache / f"models--{model.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return gpt2(root / "snapshots" / COMMIT)


@pytest.mark.parametrize("model", ["someone/tiny-gpt2", "tiny-gpt2"])
def test_a_cached_model_is_found_where_the_hub_client_finds_it(cache, model):
    folder = put(cache, model)
    assert find_model_folder(model) == folder
    assert str(folder) == snapshot_download(model, cache_dir=cache, local_files_only=True)
    assert load_vocabulary(model).model == model


@pytest.mark.parametrize(
    ("variables", "below"),
    [
        ({"HF_HUB_CACHE": "a", "HF_HOME": "b"}, "a"),
        ({"HF_HOME": "b", "XDG_CACHE_HOME": "c"}, "b/hub"),
        ({"XDG_CACHE_HOME": "c"}, "c/huggingface/hub"),
        ({"HOME": "d"}, "d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_its_variables_say(tmp_path, monkeypatch, variables, below):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert find_hub_cache() == tmp_path / below


def test_a_model_that_is_not_in_the_cache_is_refused_with_a_way_out(cache):
    with pytest.raises(VocabularyError, match="run: hf download someone/large"):
        find_model_folder("someone/large")


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "a//b", "", "a/..", "/etc", "a\\b", "a--b/c", "a/b\n"])
def test_a_name_that_no_hub_has_is_not_looked_up(cache, name):
    with pytest.raises(VocabularyError, match=r"a known name or a folder with tokenizer\.json, got"):
        find_model_folder(name)


def test_a_reference_that_is_no_commit_is_not_followed(cache):
    put(cache, "someone/odd", commit="../../..")
    with pytest.raises(VocabularyError, match="hf download"):
        find_model_folder("someone/odd")


def hub(folder, *, asked, broken=False):
    """A hub with one repository of one commit: the lists and files that `huggingface_hub` asks for."""

    def answer(path, _body, headers, method):
        asked.append((method, path))
        begin = f"/someone/tiny/resolve/{COMMIT}/"
        if path.startswith(f"/api/models/someone/tiny/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest(file)}
                for file in sorted(folder.iterdir())
            ]
            return 200, {"content-type": "application/json"}, json.dumps(files).encode()
        if not path.startswith(begin) or broken:
            return 404, {"x-error-code": "RevisionNotFound"}, b""
        file = folder / path.removeprefix(begin)
        size = str(file.stat().st_size)
        tags = {"etag": f'"{digest(file)}"', "x-repo-commit": COMMIT, "content-length": size}
        return 200, tags, b"" if method == "HEAD" else file.read_bytes()

    def digest(file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    return answer


def test_a_commit_is_downloaded_when_it_is_asked_for_and_found_by_its_name(cache, tmp_path, monkeypatch):
    source, asked = gpt2(tmp_path / "source"), []
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "run.py").write_text("raise SystemExit")
    name = f"someone/tiny@{COMMIT}"
    with pytest.raises(VocabularyError, match=f"run: rapt vocabulary download {name}"):
        find_model_folder(name)
    with strange_service.answering(hub(source, asked=asked)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        folder = download_model(name)
        count = len(asked)
        assert download_model(name) == folder
    assert len(asked) <= count + 1  # the files are there
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert not any("pytorch_model" in path or "run.py" in path for _, path in asked)
    assert find_model_folder(name) == folder
    assert name_model(name) == "someone/tiny"
    assert name_served_model(name) == "tiny"
    assert load_vocabulary(name).model == "someone/tiny"


@pytest.mark.parametrize("name", ["someone/tiny", "someone/tiny@main", "someone/tiny@abc", "../x@" + COMMIT, "a@b@c"])
def test_only_a_commit_is_downloaded(cache, name):
    with pytest.raises(UsageError, match="OWNER/NAME@COMMIT"):
        download_model(name)


def test_a_hub_that_does_not_answer_is_one_line_without_its_address(cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(UnavailableError, match="must have the commit"):
        download_model(f"someone/tiny@{COMMIT}")
    assert caplog.text == ""


def test_a_hub_that_has_no_such_commit_is_one_line_without_its_address(cache, tmp_path, monkeypatch):
    with strange_service.answering(hub(gpt2(tmp_path / "source"), asked=[], broken=True)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(UnavailableError, match="must have the commit") as refused:
            download_model(f"someone/tiny@{COMMIT}")
    assert "127.0.0.1" not in str(refused.value)
    assert "\n" not in str(refused.value)

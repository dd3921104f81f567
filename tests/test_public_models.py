"""Names of the Hugging Face hub: found in its local cache by our own few lines, never fetched."""

import pytest
from huggingface_hub import snapshot_download

from rapt.errors import VocabularyError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import find_hub_cache, find_model_folder
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

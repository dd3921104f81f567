"""Vocabularies that a client fetches: whole, checked, and gone on with after a lost connection."""

import pytest

from client_material import BOTH, answering
from rapt.errors import (
    ServiceError,
    UsageError,
    VocabularyError,
    WireError,
)
from rapt.wire.vocabulary_bundle import write_bundle


def breaking_off(folder, *, after):
    """A service that loses the connection of the first answer with a table; it tells what was asked of each."""
    asked = []

    def answer(route, _body, headers, _method):
        name = route.rpartition("/")[2]
        content = (folder / ("vocabulary.json" if name == "bert-tiny" else name)).read_bytes()
        if name != "embeddings.safetensors":
            return 200, {}, content
        asked.append(headers.get("range"))
        begin = int(headers["range"][6:-1]) if "range" in headers else 0
        length = {"content-length": str(len(content) - begin)}
        if len(asked) == 1:
            return 200, length, iter([content[:after]])
        place = {"content-range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        return 206 if begin else 200, length | place, content[begin:]

    return answer, asked


@pytest.mark.parametrize("shape", ["[99999999999, 99999999999]", "[0, 4]", "[1.5, 2]", "4", "[true, 1]"])
def test_a_vocabulary_of_an_impossible_size_is_refused_before_it_is_fetched(shape, tmp_path):
    asked = []

    def answer(path, body):
        asked.append(path)
        return 200, {}, f'{{"hash": "sha256:{64 * "0"}", "shape": {shape}}}'.encode()

    with answering(answer) as connected, pytest.raises(WireError):
        connected.vocabulary("bert-tiny", tmp_path / "mine")
    assert len(asked) == 1


def test_a_vocabulary_is_fetched_with_its_hash_computed_again(client, backbones, tmp_path, done, parts):
    expected = backbones["bert-tiny"].bundle.hash
    assert client.vocabulary("bert-tiny", tmp_path / "new" / "folder").hash == expected
    assert client.vocabulary(done.fine_tuned_model, tmp_path / "new" / "folder").hash == expected  # in its place
    assert sorted(item.name for item in (tmp_path / "new" / "folder").iterdir()) == [
        "embeddings.safetensors",
        "tokenizer.json",
        "vocabulary.json",
    ]
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["folder"]


def test_a_vocabulary_takes_the_place_of_nothing_else(client, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UsageError, match="must be new"):
            client.vocabulary("bert-tiny", target)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@BOTH
def test_a_table_whose_connection_is_lost_is_fetched_from_there_on(kind, backbones, tmp_path, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    answer, asked = breaking_off(tmp_path / "theirs", after=5000)
    with answering(answer, patience=0, kind=kind) as connected:
        with pytest.raises(ServiceError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert [path.stat().st_size for path in parts.iterdir()] == [5000]
        assert not (tmp_path / "mine").exists()
        fetched = connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert fetched.hash == backbones["bert-tiny"].bundle.hash
        assert asked == [None, "bytes=5000-"]
        assert list(parts.iterdir()) == []
        assert connected.vocabulary("bert-tiny", tmp_path / "mine").hash == fetched.hash
        assert len(asked) == 2  # what stands there is not fetched again


def test_a_beginning_of_another_table_is_not_kept(backbones, tmp_path, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    answer, _ = breaking_off(tmp_path / "theirs", after=5000)
    with answering(answer, patience=0) as connected:
        with pytest.raises(ServiceError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        (part,) = parts.iterdir()
        part.write_bytes(b"\0" * 5000)
        with pytest.raises(VocabularyError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert list(parts.iterdir()) == []
        connected.vocabulary("bert-tiny", tmp_path / "mine")


@pytest.mark.parametrize("damaged", ["vocabulary.json", "tokenizer.json", "embeddings.safetensors"])
def test_a_vocabulary_that_is_not_the_promised_one_leaves_no_folder(backbones, tmp_path, damaged, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    path = tmp_path / "theirs" / damaged
    content = bytearray(path.read_bytes())
    at = content.index(b"sha256:") + 8 if damaged == "vocabulary.json" else len(content) // 2
    content[at] = content[at] ^ 1
    path.write_bytes(content)

    def answer(route, _body):
        name = route.rpartition("/")[2]
        return 200, {}, (tmp_path / "theirs" / ("vocabulary.json" if name == "bert-tiny" else name)).read_bytes()

    with answering(answer) as connected, pytest.raises((VocabularyError, WireError)):
        connected.vocabulary("bert-tiny", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert {item.name for item in tmp_path.iterdir()} <= {"theirs", "cache"}
    assert not any(parts.glob("*"))

import pytest

from rapt.wire.whole_file import write_whole


def test_a_file_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("one\n", "zwei η\r\n"):
        assert write_whole(path, content) == path
        assert path.read_bytes() == content.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "two \ud800")  # half of a pair: no UTF-8
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]

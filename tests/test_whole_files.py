import os
import sqlite3
import stat
from pathlib import Path

import pytest

from rapt.errors import UsageError
from rapt.whole_files import check_target, open_whole, open_whole_folder, put_in_place, write_folder, write_whole


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def write_half(place):
    (place.write_bytes if isinstance(place, Path) else place.write)(b"half")
    raise KeyboardInterrupt


def device(path):
    """A node of /dev/null's numbers, where this user may make one; never the real one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("device nodes cannot be made here")


STRANGE = {
    "a folder": lambda path: path.mkdir(),
    "a named pipe": os.mkfifo,
    "a device": device,
    "a link": lambda path: path.symlink_to(path.parent / "other"),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "none"),
}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, kind, overwrite):
    (tmp_path / "other").write_text("other")
    STRANGE[kind](tmp_path / "out")
    before = (tmp_path / "out").lstat()
    with pytest.raises(UsageError, match=f"regular file or a new one, got {kind.removesuffix(' to nothing')}"):
        write_whole(tmp_path / "out", "content", overwrite=overwrite)
    assert os.path.samestat((tmp_path / "out").lstat(), before)
    assert names(tmp_path) == ["other", "out"]
    assert (tmp_path / "other").read_text() == "other"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", ".key", ".lock"])
def test_a_database_and_what_stands_beside_it_are_refused(tmp_path, suffix):
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE entries (value)")
    connection.close()
    path = tmp_path / f"a.db{suffix}"
    if suffix:
        # SQLite would read a new file of such a name as its own.
        with pytest.raises(UsageError, match="lie where one keeps its own"):
            write_whole(path, "a receipt")
        path.write_text("as much worth")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="must not replace a database"):
        check_target(path, overwrite=True)
    assert path.read_bytes() == before


def test_a_file_replaces_the_one_before_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("one\n", "zwei η\r\n"):
        assert write_whole(path, content) == path
        assert path.read_bytes() == content.encode()
        path.chmod(0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.txt"]


def test_a_new_file_has_the_mode_that_the_system_gives_and_a_private_one_is_its_owners(tmp_path):
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "a", b"1")
    write_whole(tmp_path / "b", b"1", private=True)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = write_whole(tmp_path / "a.txt", "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "two \ud800")  # half of a pair: no UTF-8
    with pytest.raises(KeyboardInterrupt), open_whole(path) as stream:
        write_half(stream)
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_of_another_that_looks_like_the_work_is_left_alone(tmp_path):
    (tmp_path / "a.txt.partial").write_text("mine")
    write_whole(tmp_path / "a.txt", "one")
    assert (tmp_path / "a.txt.partial").read_text() == "mine"


def test_a_file_that_appears_while_another_is_written_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UsageError, match="must not exist yet"), open_whole(path, overwrite=False):
        path.write_text("early")
    assert path.read_text() == "early"
    assert names(tmp_path) == ["a.txt"]


def test_a_finished_file_never_takes_the_place_of_a_pipe_that_appeared_meanwhile(tmp_path):
    (tmp_path / "done").write_text("done")
    os.mkfifo(tmp_path / "out")
    with pytest.raises(UsageError, match="a named pipe"):
        put_in_place(tmp_path / "done", tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["done", "out"]


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path):
    write_folder(tmp_path / "new" / "folder", {"a": b"1", "b": b"2"})
    assert (tmp_path / "new" / "folder" / "b").read_bytes() == b"2"
    with pytest.raises(KeyboardInterrupt), open_whole_folder(tmp_path / "half") as partial:
        write_half(partial / "a")
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["folder"]


def test_a_folder_takes_the_place_of_an_earlier_one_only(tmp_path):
    folder = tmp_path / "folder"
    write_folder(folder, {"a": b"1"})
    with open_whole_folder(folder, replaceable=("a", "b")) as partial:
        (partial / "b").write_bytes(b"2")
    assert names(folder) == ["b"]
    with pytest.raises(UsageError, match="must be new, or hold an earlier output only"):
        write_folder(folder, {"a": b"3"})
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    for path in (tmp_path / "link", tmp_path / "file"):
        with pytest.raises(UsageError, match="must be a folder, and must be new"):
            write_folder(path, {"a": b"3"})
    assert names(folder) == ["b"]
    assert names(tmp_path) == ["file", "folder", "link"]

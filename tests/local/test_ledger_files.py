"""Files of a ledger: nothing of a text in them, a key for its owner only, and no file of somebody else taken."""

import json
import os
import sqlite3
import stat
from contextlib import closing

import pytest

from ledger_material import TEXTS, VOCABULARY, released
from rapt.errors import LedgerError, UsageError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import APPLICATION_ID
from rapt.local.ledger_key import name_key, read_key
from rapt.local.ledger_place import find_ledger, make_folder, refuse_ledger_files
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from toy_vocabularies import toy_word


def test_nothing_of_a_text_is_in_the_ledger(path):
    with open_ledger(path) as ledger:
        drawn = released(ledger)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for text, ids in zip(TEXTS, drawn, strict=True):
        plain = json.dumps(VOCABULARY.encode([text])[0], separators=(",", ":")).encode()
        assert text.encode() not in content
        assert plain not in content or json.dumps(ids, separators=(",", ":")).encode() == plain


def test_hashes_of_one_text_differ_from_ledger_to_ledger(tmp_path):
    hashes = []
    for name in ("a", "b"):
        with open_ledger(tmp_path / name) as ledger:
            hashes.append(ledger.key.text_hash([TEXTS[0]]))
    assert hashes[0] != hashes[1]


def test_what_is_hashed_does_not_run_into_each_other(ledger):
    key, here = ledger.key, {"vocabulary_hash": "sha256:1"}
    assert key.text_hash(["a b"]) != key.text_hash(["a", "b"])
    assert key.content_hash([[1, 2]], **here) != key.content_hash([[1], [2]], **here)
    assert key.content_hash([[1]], **here) != key.content_hash([[1]], vocabulary_hash="sha256:2")
    content = key.content_hash([[1]], **here)
    assert len({key.release_hash(content, setting=setting, copy=copy) for setting in "ab" for copy in (0, 1)}) == 4
    assert key.run_hashes(range(9), **here) != key.run_hashes(range(9), vocabulary_hash="sha256:2")


def test_the_key_is_for_its_owner_only_and_is_never_shown(path, ledger):
    secret = read_key(name_key(path)).secret
    assert stat.S_IMODE(name_key(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for shown in (repr(ledger), repr(ledger.key), repr(read_key(name_key(path)))):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def remake(path, content):
    name_key(path).unlink()
    name_key(path).write_text(content)
    name_key(path).chmod(0o600)


BROKEN_KEYS = {
    "missing": (lambda path: name_key(path).unlink(), "a ledger must have its key"),
    "readable by others": (lambda path: name_key(path).chmod(0o644), "got mode=644; run: chmod 600"),
    "another ledger's": (lambda path: remake(path, "ab" * 32), "must be its own, got another"),
    "cut off": (lambda path: remake(path, "ab" * 31), "must be 64 hex digits"),
    "no key": (lambda path: remake(path, "zanzibarsecret"), "must be 64 hex digits"),
}


@pytest.mark.parametrize("case", BROKEN_KEYS)
def test_a_ledger_without_its_own_key_is_refused(path, case):
    with open_ledger(path) as ledger:
        released(ledger)
    damage, message = BROKEN_KEYS[case]
    damage(path)
    with pytest.raises(LedgerError, match=message) as caught, open_ledger(path):
        pass
    assert "zanzibar" not in str(caught.value)
    assert summarize_ledger(path).releases == 6


def test_a_key_without_its_ledger_is_not_used_for_a_new_one(path):
    with open_ledger(path):
        pass
    path.unlink()
    with pytest.raises(LedgerError, match="got an older one"), open_ledger(path):
        pass
    assert not path.exists()


@pytest.mark.parametrize("left", ["nothing", "an empty file", "no tables", "no tables, but a name"])
def test_a_ledger_is_not_begun_anew_beside_receipts(path, left):
    receipts = path.with_name(path.name + ".receipts")
    receipts.mkdir()
    (receipts / "a.json").write_text("{}")
    if left != "nothing":
        path.write_bytes(b"")
    if left.startswith("no tables"):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(f"CREATE TABLE t (x); DROP TABLE t; PRAGMA application_id = {APPLICATION_ID};")
            if left == "no tables":
                connection.execute("PRAGMA application_id = 0")
    with pytest.raises(LedgerError, match="emptied or removed; restore it"), open_ledger(path):
        pass
    assert path.exists() == (left != "nothing")
    assert not name_key(path).exists()
    if left != "no tables, but a name":
        (receipts / "a.json").rename(path.with_name("kept.json"))
        with open_ledger(path):
            assert summarize_ledger(path).rows == 0


def test_a_ledger_that_is_its_own_key_is_refused_and_nothing_is_made(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match="two files"), open_ledger(path, key=tmp_path / "folder" / ".." / path.name):
        pass
    assert not path.exists()


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(path):
    path.write_text("text,label\nmine,yes\n" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="must be a file that rapt wrote"), open_ledger(path):
        pass
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_programs_database_is_refused_and_left_as_it_is(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's"), open_ledger(path):
        pass
    with pytest.raises(LedgerError, match="must be a file that rapt wrote"):
        summarize_ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere/releases", "."])
def test_a_place_that_cannot_hold_a_ledger_is_refused(tmp_path, place):
    with pytest.raises(LedgerError), open_ledger(tmp_path / place):
        pass
    with pytest.raises(LedgerError, match="must be a file, got none"):
        verify_ledger(tmp_path / place)


def test_a_full_disk_spends_nothing_and_releases_nothing(path):
    with open_ledger(path) as ledger:
        released(ledger)
        connection = ledger._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="the disk is full"):
            released(ledger, [f"{toy_word(i)} {toy_word(i + 1)}" for i in range(300)])
    assert summarize_ledger(path).releases == 6
    assert verify_ledger(path).rows == 6


def test_a_ledger_is_not_used_from_a_copied_process(ledger, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="in the process that opened it"):
        ledger.commit([])


def test_rows_cannot_be_changed_or_removed_by_accident(ledger):
    released(ledger)
    for statement in ("UPDATE entries SET on_text = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            ledger._connection.execute(statement)


def test_the_key_may_lie_elsewhere(tmp_path, path):
    key = tmp_path / "safe" / "key"
    key.parent.mkdir()
    for _ in range(2):
        with open_ledger(path, key=key) as ledger:
            released(ledger)
    assert not name_key(path).exists()
    assert summarize_ledger(path).releases == 6
    assert verify_ledger(path, key=key).rows == 6
    with pytest.raises(LedgerError, match="name the key with `key`"), open_ledger(path):
        pass


def test_a_ledger_of_a_project_is_found_upwards_and_else_made_beside_the_output(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    target.parent.mkdir(parents=True)
    assert find_ledger(target) == tmp_path / "a" / "b" / ".rapt" / "ledger.sqlite"
    above = find_ledger(tmp_path / "out")
    make_folder(above)
    with open_ledger(above):
        pass
    assert find_ledger(target) == above
    assert (stat.S_IMODE(above.parent.stat().st_mode), (above.parent / ".gitignore").read_text()) == (0o700, "*\n")


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_ledger_that_another_user_put_above_is_not_taken(tmp_path):
    found = find_ledger(tmp_path / "out")
    make_folder(found)
    found.touch()
    os.chown(found, 65534, 65534)
    with pytest.raises(LedgerError, match="must be your own"):
        find_ledger(tmp_path / "out")


def test_no_output_and_no_source_is_a_key_that_lies_elsewhere(tmp_path, path):
    key, other = tmp_path / "key", tmp_path / "other"
    key.touch()
    for target, source in ((key, other), (other, key)):
        with pytest.raises(UsageError, match="other files than the ledger and its key"):
            refuse_ledger_files(target, source, ledger=path, key=key)


def test_a_ledger_where_nothing_can_be_written_is_shown_and_verified(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    with open_ledger(folder / "ledger") as ledger:
        released(ledger)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "ledger").chmod(0o400)
    folder.chmod(0o500)
    try:
        assert summarize_ledger(folder / "ledger").releases == 6
        assert verify_ledger(folder / "ledger").rows == 6
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    finally:
        folder.chmod(0o700)

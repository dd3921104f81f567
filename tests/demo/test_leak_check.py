"""The search for plain text finds what it should find: each way of leaking is a twin that must be found."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from rapt.demo.leak_check import search_folder

SECRET = "The crème brûlée in Łódź was cold, and the waiter laughed at my mother."
HARMLESS = "the waiter was cold and my mother laughed the whole evening"


def write_log(folder: Path) -> None:
    (folder / "service.log").write_text(f"INFO request body={SECRET}\n", encoding="utf-8")


def write_part_of_it(folder: Path) -> None:
    (folder / "error.txt").write_text("bad token near: COLD,   AND the\twaiter laughed", encoding="utf-8")


def write_escaped_json(folder: Path) -> None:
    (folder / "event.json").write_text(json.dumps({"message": "\n" + SECRET[:60]}), encoding="ascii")


def write_utf16(folder: Path) -> None:
    (folder / "page.bin").write_bytes(SECRET.encode("utf-16-le"))


def write_database(folder: Path) -> None:
    connection = sqlite3.connect(folder / "rapt.sqlite")
    with connection:
        connection.execute("create table events (message text)")
        connection.execute("insert into events values (?)", (SECRET,))
    connection.close()


@pytest.mark.parametrize(
    "leak",
    [write_log, write_part_of_it, write_escaped_json, write_utf16, write_database],
    ids=lambda leak: leak.__name__,
)
def test_every_way_of_keeping_a_text_is_found(leak, tmp_path: Path):
    leak(tmp_path)
    assert len(search_folder(tmp_path, [SECRET]).leaked) == 1


def test_words_in_another_order_are_not_a_leak(tmp_path: Path):
    (tmp_path / "notes.txt").write_text(HARMLESS, encoding="utf-8")
    found = search_folder(tmp_path, [SECRET])
    assert found.leaked == ()
    assert found.files == 1
    assert found.runs == 4  # of the eight words the was cold and the waiter laughed mother


def test_an_empty_folder_says_that_nothing_was_searched(tmp_path: Path):
    assert search_folder(tmp_path, [SECRET]).files == 0

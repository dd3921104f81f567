"""The chain of a ledger: whatever somebody does to a row shows, and where; a cell of another kind is a plain error."""

import hashlib
import hmac
import json
import sqlite3
from contextlib import closing

import pytest

from rapt.errors import LedgerError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import COLUMNS, Cap, Caps, Release
from rapt.local.ledger_key import name_key, read_key
from rapt.local.ledger_releases import privatize_through
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary, toy_word

ROWS = 8


def release(number):
    return Release(
        kind="metric",
        setting="{}",
        text_hash=bytes([number]) * 32,
        content_hash=bytes([number + 50]) * 32,
        release_hash=bytes([number + 100]) * 32,
        released=json.dumps({"token_ids": [number, number + 1]}),
        position=number,
        tokens=2,
        on_text=10.0 + number,
        in_all=20.0 + 2 * number,
    )


@pytest.fixture
def path(tmp_path):
    """Seven releases in three commits, and a change of the caps between them."""
    with open_ledger(tmp_path / "a.ledger") as ledger:
        ledger.commit([release(1), release(2), release(3)])
        ledger.set_caps(Caps(metric=Cap(on_text=1000.0)))
        ledger.commit([release(4)])
        ledger.commit([release(5), release(6), release(7)])
    return tmp_path / "a.ledger"


def tamper(path, *statements):
    """What somebody with the file and any SQLite program can do."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP TRIGGER entries_are_not_changed")
        connection.execute("DROP TRIGGER entries_are_not_removed")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_ledger_that_nobody_touched_is_whole(path):
    assert verify_ledger(path).rows == ROWS


def test_an_empty_ledger_is_whole(tmp_path):
    with open_ledger(tmp_path / "empty") as ledger:
        ledger.commit([])
    assert (verify_ledger(tmp_path / "empty").rows, verify_ledger(tmp_path / "empty").head) == (0, "")
    assert summarize_ledger(tmp_path / "empty").first is None


def chain(path, rows):
    """The digests of rows, recomputed with the key by the definition alone."""
    secret = read_key(name_key(path)).secret
    with closing(sqlite3.connect(path)) as connection:
        (ledger_id,) = connection.execute("SELECT id FROM ledger").fetchone()
    digest = hmac.digest(secret, b"first\0" + f"rapt.ledger/2 {ledger_id}".encode(), "sha256")
    for row in rows:
        values = [value.hex() if isinstance(value, bytes) else value for value in row]
        line = json.dumps(values, separators=(",", ":")).encode()
        digest = hmac.digest(secret, b"row\0" + digest + line, "sha256")
        yield digest
    head = f"{ledger_id} {len(rows)} {digest.hex()}".encode()
    yield hmac.digest(secret, b"head\0" + head, "sha256")


def rows_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY sequence").fetchall()


def test_the_chain_is_hmac_over_the_digest_before_and_the_row(path):
    rows = rows_of(path)
    *digests, _ = chain(path, [row[:-1] for row in rows])
    assert [row[-1] for row in rows] == digests
    assert verify_ledger(path).head == digests[-1].hex()


def test_a_total_that_is_not_the_sum_of_its_rows_is_found_even_where_the_key_signed_it(path):
    rows = [list(row[:-1]) for row in rows_of(path)]
    place = COLUMNS.index("total")
    rows[5][place] -= 20.0
    *digests, check = chain(path, rows)
    tamper(
        path,
        *(
            f"UPDATE entries SET total = {row[place]!r}, digest = x'{digest.hex()}' WHERE sequence = {row[0]}"
            for row, digest in zip(rows, digests, strict=True)
        ),
        f"UPDATE ledger SET head_digest = x'{digests[-1].hex()}', head_check = x'{check.hex()}'",
    )
    with pytest.raises(LedgerError, match="the total in row 6 of the ledger must be the sum"):
        verify_ledger(path)


def rewrite_without_the_key(path):
    """A script with the file alone: the first rows go, and the chain is made anew, with hashes that need no key."""
    connection = sqlite3.connect(path)
    with connection:
        for name in ("changed", "removed"):
            connection.execute(f"DROP TRIGGER entries_are_not_{name}")
        connection.execute("DELETE FROM entries WHERE sequence <= 3")
        connection.execute("UPDATE entries SET sequence = sequence - 3, total = total - 66")
        (ledger_id,) = connection.execute("SELECT id FROM ledger").fetchone()
        digest = hashlib.sha256(f"rapt.ledger/2 {ledger_id}".encode()).digest()
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY sequence").fetchall()
        for row in rows:
            values = [value.hex() if isinstance(value, bytes) else value for value in row[:-1]]
            digest = hashlib.sha256(digest + json.dumps(values, separators=(",", ":")).encode()).digest()
            connection.execute("UPDATE entries SET digest = ? WHERE sequence = ?", (digest, row[0]))
        connection.execute("UPDATE ledger SET head_sequence = ?, head_digest = ?", (len(rows), digest))
    connection.close()


FORGERIES = {
    "all rows gone": lambda path: tamper(
        path, "DELETE FROM entries", "UPDATE ledger SET head_sequence = 0, head_digest = x''"
    ),
    "set back to an earlier row": lambda path: tamper(
        path,
        "DELETE FROM entries WHERE sequence > 5",
        "UPDATE ledger SET head_sequence = 5, head_digest = (SELECT digest FROM entries WHERE sequence = 5)",
    ),
    "rewritten without the key": rewrite_without_the_key,
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_ledger_that_a_script_rewrote_is_found_and_nothing_is_released_on_top(path, forgery):
    forgery(path)
    with pytest.raises(LedgerError, match="ledger"):
        verify_ledger(path)
    with pytest.raises(LedgerError), open_ledger(path) as ledger:
        ledger.commit([release(9)])


NEW_VALUES = {
    "sequence": "99",
    "time": "'2001-01-01T00:00:00+00:00'",
    "kind": "'label'",
    "setting": "'{\"eta\":1}'",
    "tokens": "1",
    "on_text": "0.5",
    "in_all": "0.5",
    "total": "0.5",
    "text_hash": "zeroblob(32)",
    "content_hash": "zeroblob(32)",
    "release_hash": "zeroblob(32)",
    "released": "'{\"token_ids\":[]}'",
    "digest": "zeroblob(32)",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_was_edited_is_found_at_its_row(path, column):
    tamper(path, f"UPDATE entries SET {column} = {NEW_VALUES[column]} WHERE sequence = 5")
    with pytest.raises(LedgerError, match=r"row 5 of the ledger does not follow"):
        verify_ledger(path)


@pytest.mark.parametrize("row", range(1, ROWS))
def test_a_row_that_was_removed_is_found_where_it_stood(path, row):
    tamper(path, f"DELETE FROM entries WHERE sequence = {row}")
    with pytest.raises(LedgerError, match=f"row {row} of the ledger"):
        verify_ledger(path)


def test_a_row_that_was_removed_and_closed_up_is_found(path):
    tamper(
        path,
        "DELETE FROM entries WHERE sequence = 3",
        *(f"UPDATE entries SET sequence = {i - 1} WHERE sequence = {i}" for i in range(4, ROWS + 1)),
    )
    with pytest.raises(LedgerError, match="row 3 of the ledger"):
        verify_ledger(path)


def test_rows_that_changed_places_are_found(path):
    tamper(
        path,
        "UPDATE entries SET sequence = -1 WHERE sequence = 5",
        "UPDATE entries SET sequence = 5 WHERE sequence = 6",
        "UPDATE entries SET sequence = 6 WHERE sequence = -1",
    )
    with pytest.raises(LedgerError, match="row 5 of the ledger"):
        verify_ledger(path)


def test_rows_removed_from_the_end_are_found(path):
    tamper(path, "DELETE FROM entries WHERE sequence > 6")
    with pytest.raises(LedgerError, match="got 6 rows of 8"):
        verify_ledger(path)
    # And nothing more is released on top of them.
    with pytest.raises(LedgerError, match="must have all of its rows, got 6 of 8"), open_ledger(path):
        pass


def test_a_ledger_set_back_as_a_whole_is_found_by_a_noted_head(path):
    before = path.read_bytes()
    noted = verify_ledger(path).head
    with open_ledger(path) as ledger:
        ledger.commit([release(9)])
    later = verify_ledger(path, heads=[noted])
    assert later.rows == ROWS + 1
    path.write_bytes(before)
    assert verify_ledger(path).rows == ROWS
    with pytest.raises(LedgerError, match="the ledger was set back or rewritten"):
        verify_ledger(path, heads=[noted, later.head])


def test_a_row_of_another_ledger_does_not_fit(path, tmp_path):
    with open_ledger(tmp_path / "b.ledger") as ledger:
        ledger.commit([release(1)])
    tamper(
        path,
        "DELETE FROM entries WHERE sequence = 1",
        f"ATTACH '{tmp_path / 'b.ledger'}' AS other",
        "INSERT INTO entries SELECT * FROM other.entries",
    )
    with pytest.raises(LedgerError, match="row 1 of the ledger"):
        verify_ledger(path)


def test_a_damaged_file_is_a_clear_error(path):
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    for read in (verify_ledger, summarize_ledger):
        with pytest.raises(LedgerError):
            read(path)


@pytest.mark.parametrize("statement", ["DELETE FROM ledger", "UPDATE ledger SET schema = 'rapt.ledger/9'"])
def test_a_ledger_of_another_version_is_refused(path, statement):
    tamper(path, statement)
    for read in (verify_ledger, summarize_ledger):
        with pytest.raises(LedgerError, match=r"must be of schema 'rapt\.ledger/2'"):
            read(path)
    with pytest.raises(LedgerError, match="must be of schema"), open_ledger(path):
        pass


def test_caps_that_were_damaged_are_a_clear_error(path):
    tamper(path, "UPDATE entries SET released = 'none' WHERE kind = 'cap'")
    with pytest.raises(LedgerError, match="a row of the ledger is damaged"):
        summarize_ledger(path)


VOCABULARY = toy_vocabulary([[i / 1000] for i in range(40)])
MADE = Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=5.0), NO_PLAIN_TOKENS)
TEXTS = [toy_word(1), toy_word(2)]
SECRET = "sesame-4711"
CELLS = [("ledger", name) for name in ("schema", "id", "key_check", "head_sequence", "head_digest", "head_check")]
CELLS += [("entries", name) for name in COLUMNS if name != "sequence"]
# As SQL, because SQLite keeps whatever bytes are called a text.
VALUES = {
    "bytes that are not UTF-8": f"CAST(x'fffe' || '{SECRET}' AS TEXT)",
    "a text": f"'{SECRET}'",
    "a blob": "x'00ff'",
    "an infinity": "9e999",
    "a large number": "9223372036854775807",
    "a number below 0": "-1",
    "a list": "'[[[]]]'",
    "an object of other things": f"""'{{"token_ids": "{SECRET}", "per_text": "x", "in_all": [], "label": 1e999}}'""",
    "deep": "'" + "[" * 5000 + "'",
    "many digits": '\'{"token_ids": [' + "9" * 5000 + "]}'",
}


def put_through(ledger, texts):
    stream = secure_stream()
    setting = ChunkSetting(MADE, None, MADE.manifest(labels=None, randomness=stream.provenance))
    return privatize_through(ledger, Chunk(0, texts, None), setting, stream=stream)


def used(ledger):
    found = [record.token_ids for record in put_through(ledger, [*TEXTS, toy_word(3)])]
    ledger.caps()
    ledger.set_caps(Caps(metric=Cap(on_text=1e6, in_all=1e9)))
    return found


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(("table", "column"), CELLS)
def test_a_cell_that_was_replaced_is_an_error_of_the_ledger_or_does_no_harm(tmp_path, table, column, value):
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger:
        put_through(ledger, TEXTS)
        ledger.set_caps(Caps(metric=Cap(on_text=1e5)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER entries_are_not_changed")
        connection.execute(f"UPDATE {table} SET {column} = {value}")

    def use():
        with open_ledger(path) as ledger:
            return used(ledger)

    for read in (lambda: verify_ledger(path), lambda: repr(summarize_ledger(path)), use):
        try:
            read()
        except LedgerError as error:
            message = str(error)
        else:
            continue
        assert SECRET not in message, "an error must not repeat what stands in the ledger"
        assert "\n" not in message, "an error must be one line"

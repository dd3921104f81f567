"""A ledger in which any cell was replaced by something else: an error of the ledger in one line, or an answer."""

import sqlite3
from contextlib import closing

import pytest

from rapt.errors import LedgerError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_entries import COLUMNS, Caps
from rapt.local.ledger_releases import privatize_through
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary, toy_word

VOCABULARY = toy_vocabulary([[i / 1000] for i in range(40)])
MADE = Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=5.0), NO_PLAIN_TOKENS)
TEXTS = [toy_word(1), toy_word(2)]
SECRET = "sesame-4711"
CELLS = [("ledger", name) for name in ("schema", "id", "key_check", "head_sequence", "head_digest")]
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


def used(ledger):
    found = [
        record.token_ids
        for record in privatize_through(
            ledger, MADE, [*TEXTS, toy_word(3)], labels=None, response=None, stream=secure_stream()
        )
    ]
    ledger.caps()
    ledger.set_caps(Caps(per_text=1e6, in_all=1e9))
    return found


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(("table", "column"), CELLS)
def test_a_cell_that_was_replaced_is_an_error_of_the_ledger_or_does_no_harm(tmp_path, table, column, value):
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger:
        list(privatize_through(ledger, MADE, TEXTS, labels=None, response=None, stream=secure_stream()))
        ledger.set_caps(Caps(per_text=1e5))
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

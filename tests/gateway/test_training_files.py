"""Training records as people have them: what is understood becomes a file, what is not is named by its number."""

import json
import tempfile

import pytest

from http_requests import open_client
from rapt.errors import CorpusError
from rapt.gateway.training_files import read_training_records
from running_gateway import KEY, running_gateway
from strange_service import answering


def lines(*values):
    return "\n".join(json.dumps(value) for value in values).encode()


def said(*messages):
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


GOOD = said(("user", "soup"), ("assistant", "yes"))


@pytest.mark.parametrize(
    ("content", "is_csv"),
    [
        (lines({"text": "soup", "label": "yes"}), False),
        (lines({"prompt": "soup", "completion": "yes"}), False),
        (b"\xef\xbb\xbf" + lines(GOOD) + b"\n\n", False),
        (lines(said(("developer", "Judge."), ("user", "soup"), ("assistant", "yes"))), False),
        (b"label,text\r\nyes,soup\r\n", True),
        (b'text,label\n"soup",yes\n', True),
    ],
)
def test_a_record_of_each_form_is_a_text_and_its_answer(content, is_csv):
    (record,) = read_training_records(content, is_csv=is_csv)
    assert (record.text, record.answer) == ("soup", "yes")
    assert "soup" not in repr(record)


@pytest.mark.parametrize(
    ("content", "is_csv", "rule"),
    [
        (b"", False, "at least one record"),
        (b"\xff\xfe", False, "must be UTF-8"),
        (lines(GOOD) + b"\n{zeppelin", False, "record 2 must be one JSON value"),
        (lines(GOOD, {"text": "zeppelin"}), False, "record 2: a record must have messages alone"),
        (lines(GOOD | {"note": "zeppelin"}), False, "record 1: a record must have messages alone"),
        (lines({"text": ["zeppelin"], "label": "yes"}), False, "record 1: text and label must be texts"),
        (lines(said(("user", "zeppelin"))), False, "record 1: messages must be one of the user"),
        (lines(said(("tool", "zeppelin"))), False, "record 1: messages.0.role must be one of"),
        (lines(said(*2 * [("user", "zeppelin"), ("assistant", "yes")])), False, "record 1: messages must be one of"),
        (
            lines(*(said(("system", how), ("user", "soup"), ("assistant", "yes")) for how in ("a", "zeppelin"))),
            False,
            "record 2 must have the same system message",
        ),
        (b'text,label\n"zeppelin,yes\n', True, "must have quotes around fields"),
        (b"text,label\nzeppelin\n", True, "record 1: text and label must be texts"),
        (b"text,label\nzeppelin,yes,no\n", True, "record 1: a record must have messages alone"),
        (b"text,label,label\nzeppelin,yes,no\n", True, "must name each column once"),
        (b'{"schema":"rapt.privatized/1","zeppelin":1}', False, "record 1: a record must have messages alone"),
    ],
)
def test_a_record_that_is_not_understood_is_named_by_its_number_and_never_quoted(content, is_csv, rule):
    with pytest.raises(CorpusError) as error:
        read_training_records(content, is_csv=is_csv)
    assert rule in str(error.value)
    assert "zeppelin" not in str(error.value)


def test_an_upload_above_a_mebibyte_never_reaches_the_disk(reader_privatizer, tmp_path, monkeypatch):
    """A form's parser would put it into a temporary file, in clear; here there is no folder for one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    content = lines(*({"text": "soup", "label": "yes"} for _ in range(70_000))) + b"\n{"
    assert len(content) > 2 * 2**20
    with (
        answering(lambda path, body: (200, {}, b"{}")) as service,
        running_gateway(service, reader_privatizer, ledger=tmp_path / "ledger.sqlite") as url,
        open_client(url, headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        answer = client.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_file")
    assert answer.json()["error"]["message"].startswith("record 70001 must be one JSON value")

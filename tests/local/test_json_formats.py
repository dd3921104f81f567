"""Arrays of JSON objects and chats, read as what they are; those of one object a line are in `test_corpus`."""

import json
import tracemalloc

import pytest

from rapt.errors import CorpusError, RaptError
from rapt.local import json_formats
from rapt.local.corpus import privatize_corpus, read_columns, read_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.records import PartColumns
from rapt.wire.manifest import NO_PLAIN_TOKENS

SECRET = "zanzibarsecret"
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the soup was cold"},
    {"role": "assistant", "content": [{"type": "text", "text": "we are"}, {"type": "text", "text": "sorry"}]},
]


def rows(path, **arguments):
    return [(record.text, record.label) for record in read_corpus(path, **arguments)]


@pytest.mark.parametrize("size", [1, 7, 64, 65536])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_gives_its_objects_wherever_it_is_cut(file, monkeypatch, size, indent):
    monkeypatch.setattr(json_formats, "_LETTERS_AT_ONCE", size)
    records = [{"text": f'naïve "{{[]}}\\ {i}' * (i + 1), "n": [{"a": -1.5e3}, None], "label": i} for i in range(9)]
    path = file("a.json", json.dumps(records, indent=indent))
    assert rows(path) == [(item["text"], str(item["label"])) for item in records]
    assert rows(file("b.json", json.dumps([{"text": " "}, *records])), skip_empty=True) == rows(path)
    assert read_columns(path, ["n"]) == [{"n": item["n"]} for item in records]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "at least one record"),
        (f'[{{"text": "{SECRET}"}}', "the file must be part of one array"),
        (f'[{{"text": "{SECRET}"}},]', "record 2 must be part of one array"),
        (f'[{{"text": "{SECRET}"}} {{}}]', "the file must be part of one array"),
        (f'[{{"text": "{SECRET}"}}] {SECRET}', "an array must end its file"),
        (f'[{{"text": "{SECRET}"}}, 3]', "record 2 must be an object, got a whole number"),
        (f'[{{"text": "{SECRET}", "a": ', "record 1 must be part of one array"),
        (f'[{{"text": "a"}}, {{"n": "{SECRET}"}}]', "record 2 must have a text in 'text', got nothing"),
        ("[" * 100_000, "record 1 must be part of one array"),
    ],
)
def test_an_array_that_is_none_is_one_clear_line(file, content, message):
    with pytest.raises(CorpusError, match=message) as caught:
        rows(file("a.json", content), label_column=None)
    assert SECRET not in str(caught.value)


def test_an_enormous_object_is_refused_before_it_fills_the_memory(file):
    path = file("a.json", '[{"text": "')
    with path.open("ab") as stream:  # half a gigabyte of nothing, which takes no room on the disk
        stream.truncate(2**29)
    tracemalloc.start()
    try:
        with pytest.raises(CorpusError, match="record 1 must be one JSON object of at most 16777216 letters"):
            rows(path, label_column=None)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_each_message_of_a_chat_is_a_record_whose_role_may_be_its_label(file, name, keys):
    chat = [{keys[0]: message["role"], keys[1]: message["content"]} for message in CHAT]
    path = file("a.jsonl", json.dumps({name: chat, "id": 7}) + "\n")
    texts = ["be brief", "the soup was cold", "we are\nsorry"]
    assert rows(path, text_column=name, label_column="role") == list(
        zip(texts, ["system", "user", "assistant"], strict=True)
    )
    assert read_columns(path, ["id"], text_column=name) == [{"id": 7}] * 3


def test_what_is_asked_and_what_is_answered_are_text_and_target(file, tmp_path, bert_tiny):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=50.0)
    privatizer = Privatizer(vocabulary=bert_tiny, mechanism=mechanism, plain_tokens=NO_PLAIN_TOKENS)
    path = file("a.json", json.dumps([{"messages": CHAT}, {"messages": CHAT[1:]}]))
    assert rows(path, text_column="messages.user", label_column=None) == [("the soup was cold", None)] * 2
    manifest = privatize_corpus(
        path,
        tmp_path / "out",
        privatizer=privatizer,
        text_column="messages.user",
        label_column=None,
        other_texts=PartColumns(target="messages.assistant"),
        stream=insecure_stream(1),
    )
    assert (manifest.records, manifest.tokens) == (2, 14)


@pytest.mark.parametrize(
    ("chat", "column", "message"),
    [
        ([*CHAT, CHAT[1]], "messages.user", "line 1 must have one message of the role 'user', got 2 of them"),
        (CHAT[:1], "messages.user", "line 1 must have one message of the role 'user', got 0 of them"),
        ([{"role": "user", "content": None}], "messages.user", "got one without a text"),
        ([{"role": "user", "content": None}], "messages", "line 1, message 1, must have a role and a text"),
        ([{"content": SECRET}], "messages", "line 1, message 1, must have a role and a text"),
        ([SECRET], "messages", "line 1, message 1, must have a role and a text"),
        ([{"role": "user", "content": [{"type": "image_url", "text": 3}]}], "messages", "a role and a text"),
        ([], "messages", "line 1 must have messages in 'messages', got none"),
        (CHAT, "text", "line 1 must have a text in 'text', got a chat in 'messages'; name messages to take each"),
    ],
)
def test_a_chat_that_cannot_be_read_is_one_clear_line(file, chat, column, message):
    with pytest.raises(RaptError, match=message) as caught:
        rows(file("a.jsonl", json.dumps({"messages": chat})), text_column=column, label_column=None)
    assert SECRET not in str(caught.value)


def test_messages_without_a_text_are_passed_over_where_that_is_asked_for(file):
    chat = [*CHAT[:2], {"role": "assistant", "content": None, "tool_calls": [{}]}]
    path = file("a.jsonl", json.dumps({"messages": chat}))
    assert len(rows(path, text_column="messages", label_column=None, skip_empty=True)) == 2

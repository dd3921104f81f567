"""Corpora of JSON objects, one a line or all in one array, and the chats that files for tuning hold.

An array is read object by object, so that memory does not grow with it. A chat, a list of messages with a role and a
text each, is read in two ways: the name of its field gives each message as a record, whose role may be the label; and
`messages.user` gives the one message of that role, so that what is asked and what is answered become text and target.
Messages name lines, records and roles of the usual kind, never what stands there.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from rapt.errors import CorpusError, name_record
from rapt.local.corpus_formats import (
    MAX_LINE_BYTES,
    Columns,
    Findings,
    Row,
    is_empty,
    open_corpus,
    read_lines,
    skip_blank_lines,
)

# Fields in which files for the tuning of chat models hold a list of messages, and what those call a message's parts.
_CHATS: Final = ("messages", "conversations")
_ROLES: Final = ("role", "from")
_TEXTS: Final = ("content", "value")
_ROLE: Final = "role"
_MOST_DIGITS: Final = 100
_LETTERS_AT_ONCE: Final = 64 * 1024
_BLANK: Final = " \t\r\n"


class _Pairs(list[tuple[str, Any]]):
    """The fields of a JSON object in order; the same key may come twice in one that nobody reads."""

    def once(self, name: str) -> tuple[bool, Any]:
        """Whether the field is there at most once, and its value, or `_NOTHING`."""
        values = [value for key, value in self if key == name]
        return len(values) < 2, values[0] if values else _NOTHING


class _Nothing:
    """The value of a field that is not there."""


_NOTHING: Final = _Nothing()
_KINDS: Final = {
    _Pairs: "an object",
    _Nothing: "nothing",
    list: "a list",
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
}
# NaN is taken, and a number of any length, because the field may be one that nobody reads.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else float("inf"),
)


@dataclass(frozen=True)
class _Item:
    """One object of a source, or a message of its chat.

    Attributes:
        place: Place, as messages name it.
        fields: Fields of the object.
        message: Role and text of the message, where each is a record.
    """

    place: str
    fields: _Pairs = field(repr=False)
    message: tuple[Any, Any] | None = field(default=None, repr=False)


def read_json(path: Path, columns: Columns, found: Findings) -> Generator[Row | None, None, None]:
    """The records of a file of JSON objects; None for a fault. Fields that are not read may be anything."""
    objects = _read_array(path, found) if _begins_with_an_array(path) else _read_object_lines(path, columns, found)
    for item in objects:
        if item is None:
            yield None
            continue
        if columns.skip_empty and any(is_empty(item.fields.once(column)[1]) for column in columns.texts):
            found.skipped += 1
            continue
        for part in _split_chat(item, columns, found):
            yield None if part is None else _read_row(part, columns, found)


def _read_row(item: _Item, columns: Columns, found: Findings) -> Row | None:
    place, fields = item.place, item.fields
    read = [_read_text(item, column, found, privatized=columns.privatized) for column in columns.texts]
    texts = tuple(text for text in read if text is not None)
    if columns.label == _ROLE and item.message is not None:
        label = None if item.message[0] is None else found.label(place, item.message[0])
    else:
        label = None if columns.label is None else _read_label(fields, columns.label, place, found)
    if len(texts) < len(read) or (columns.label is not None and label is None):
        return None
    return Row(place, texts, label, tuple(_make_plain(fields.once(column)[1]) for column in columns.kept))


def _begins_with_an_array(path: Path) -> bool:
    """Whether the first letter of a file, behind spaces, opens an array."""
    found = Findings()
    with open_corpus(path, found) as (_, stream):
        begin = stream.peek().decode("utf-16" if found.utf16 else "utf-8-sig", errors="ignore").lstrip(_BLANK)
    return begin.startswith("[")


def _read_object_lines(path: Path, columns: Columns, found: Findings) -> Iterator[_Item | None]:
    """The objects of a file with one a line."""
    undecoded = 0
    rows = ((number, line.strip()) for number, line in enumerate(read_lines(path, found), 1))
    for number, line in skip_blank_lines(rows, found, skip=columns.skip_empty):
        place = f"line {number}"
        if found.undecoded > undecoded:
            undecoded = found.undecoded
            yield None
            continue
        fields = _parse(line)
        if fields is None:
            found.fault(place, "be one JSON object; the file is damaged or of another kind")
            yield None
            continue
        yield _Item(place, fields)


def _parse(line: str) -> _Pairs | None:
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError):
        # The decoder's own message quotes its input: it is dropped on purpose.
        return None
    return value if isinstance(value, _Pairs) else None


def _read_array(path: Path, found: Findings) -> Iterator[_Item | None]:
    """The objects of an array, of which one at a time is in memory; `CorpusError` where it is none or cut off."""
    with open_corpus(path, found) as (file, stream):
        letters = io.TextIOWrapper(stream, encoding="utf-16" if found.utf16 else "utf-8-sig", newline="")
        with letters:
            source = _Buffer(letters)
            source.take("[")
            for position in count():
                place = name_record(position)
                if source.peek() == "]" and position == 0:
                    source.take("]")
                    break
                fields = source.read_value(place)
                found.reading.done = file.tell()
                if isinstance(fields, _Pairs):
                    yield _Item(place, fields)
                else:
                    found.fault(place, f"be an object, got {_name_kind(fields)}; write the array anew")
                    yield None
                if source.take(",]") == "]":
                    break
            if source.peek():
                raise CorpusError(
                    "an array must end its file, got more behind it; write one array, or an object a line"
                )


class _Buffer:
    """The letters of a file that wait to be read."""

    def __init__(self, letters: io.TextIOWrapper) -> None:
        self._letters = letters
        self._text, self._at = "", 0

    def peek(self) -> str:
        """Return the next letter that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if not self._read_more(_LETTERS_AT_ONCE):
                return ""

    def take(self, known: str) -> str:
        """Return the next letter, which must be one of these."""
        if (letter := self.peek()) not in known or not letter:
            raise _make_array_error()
        self._at += 1
        return letter

    def read_value(self, place: str) -> Any:
        """Return the next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:  # it may only be cut; the message quotes its input
                waiting = len(self._text) - self._at
                if waiting > MAX_LINE_BYTES:
                    raise CorpusError(
                        f"{place} must be one JSON object of at most {MAX_LINE_BYTES} letters; mend it, or split "
                        "its text, because no backbone takes so many tokens"
                    ) from None
                # Twice as much each time: a long value is then parsed from its start a few times and not for each part.
                if isinstance(error, RecursionError) or not self._read_more(max(waiting, _LETTERS_AT_ONCE)):
                    raise _make_array_error(place) from None
            else:
                if end == len(self._text) and self._read_more(_LETTERS_AT_ONCE):  # a number may go on
                    continue
                self._at = end
                return value

    def _read_more(self, size: int) -> bool:
        """Whether more letters came; what was read before is forgotten."""
        more = self._letters.read(size)
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _make_array_error(place: str = "the file") -> CorpusError:
    return CorpusError(
        f"{place} must be part of one array of JSON objects; the file is damaged, cut off or another kind"
    )


def _split_chat(item: _Item, columns: Columns, found: Findings) -> Iterator[_Item | None]:
    """Each message of a chat where its field is the text to read; else the object itself."""
    name = columns.texts[0] if columns.texts else ""
    chat = item.fields.once(name)[1]
    if name not in _CHATS or not isinstance(chat, list):
        yield item
        return
    if len(columns.texts) > 1:
        rule = f"have one text in {name!r} beside a second one, got a chat; name {name}.user and {name}.assistant"
        found.fault(item.place, rule)
        yield None
        return
    for number, message in enumerate(chat, 1):
        place = f"{item.place}, message {number},"
        role, text = _read_message(message)
        if columns.skip_empty and is_empty(text):
            found.skipped += 1
        elif not isinstance(role, str) or not isinstance(text, str):
            found.fault(place, "have a role and a text; write what it says as one, or leave the message out")
            yield None
        else:
            yield _Item(place, item.fields, (role, text))
    if not chat:
        found.fault(item.place, f"have messages in {name!r}, got none; remove it")
        yield None


def _read_message(message: Any) -> tuple[Any, Any]:
    """Role and text of a message; None for what is not there once. Parts that are all of text are one text."""
    if not isinstance(message, _Pairs):
        return None, None
    role, text = (
        next((value for once, value in map(message.once, names) if once and value is not _NOTHING), None)
        for names in (_ROLES, _TEXTS)
    )
    if isinstance(text, list) and text:
        parts = [part.once("text")[1] for part in text if isinstance(part, _Pairs)]
        known = [part for part in parts if isinstance(part, str)]
        text = "\n".join(known) if len(known) == len(text) else None
    return role, text


def _read_text(item: _Item, column: str, found: Findings, *, privatized: bool) -> str | None:
    if item.message is not None:
        return str(item.message[1])
    fields, place = item.fields, item.place
    once, value = fields.once(column)
    field_, _, role = column.rpartition(".")
    if value is _NOTHING and field_ in _CHATS and isinstance(chat := fields.once(field_)[1], list):
        return _read_text_of_role(chat, role, place, found)
    chat_field = next((name for name in _CHATS if isinstance(fields.once(name)[1], list)), None)
    if not once:
        found.fault(place, f"have the field {column!r} once, got it several times; write the line again")
    elif isinstance(value, str):
        return value
    elif value is _NOTHING and chat_field is not None:
        ways = f"name {chat_field} to take each message for a text"
        if privatized:
            ways += f", or {chat_field}.user as the text and {chat_field}.assistant as the target column"
        found.fault(place, f"have a text in {column!r}, got a chat in {chat_field!r}; {ways}")
    else:
        found.fault(place, f"have a text in {column!r}, got {_name_kind(value)}; name the right field")
    return None


def _read_text_of_role(chat: list[Any], role: str, place: str, found: Findings) -> str | None:
    """The text of the one message of a role: of several, some would be left out unasked."""
    texts = [text for said, text in map(_read_message, chat) if said == role]
    if len(texts) == 1 and isinstance(texts[0], str):
        return texts[0]
    got = f"{len(texts)} of them" if len(texts) != 1 else "one without a text"
    found.fault(place, f"have one message of the role {role!r}, got {got}; split the chat, or remove it")
    return None


def _read_label(fields: _Pairs, column: str, place: str, found: Findings) -> str | None:
    once, value = fields.once(column)
    if once and type(value) in (str, int):
        return found.label(place, str(value))
    got = _name_kind(value) if once else "it several times"
    found.fault(place, f"have a name or a whole number in {column!r}, got {got}; name the right field")
    return None


def _make_plain(value: Any) -> Any:
    """The value of a field that is handed back; None where there is none."""
    if isinstance(value, _Pairs):
        return {name: _make_plain(item) for name, item in value}
    if isinstance(value, list):
        return [_make_plain(item) for item in value]
    return None if value is _NOTHING or (isinstance(value, float) and not math.isfinite(value)) else value


def _name_kind(value: object) -> str:
    return _KINDS.get(type(value), "a number that is not whole" if isinstance(value, float) else "a text")

"""Rebuilds the command that makes a result again; every report states it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Value = str | int | float | bool | Path | Sequence[str | int | float] | Mapping[str, object] | None


def rebuild_command(command: str, *arguments: Path | str, **options: Value) -> str:
    """Return the line `rapt COMMAND ARGUMENTS OPTIONS`, quoted for a shell.

    Only the last part of a path is kept: a report says nothing of where files lie.

    Args:
        command: Name of the command.
        arguments: Arguments in their order.
        options: Options by name, with `_` for `-`. None and False leave an option out, True is a switch, a sequence
            repeats the option, and a mapping repeats it as NAME=VALUE.
    """
    words = ["rapt", command, *map(_write_word, arguments)]
    for name, value in options.items():
        option = "--" + name.strip("_").replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            for one in _list_values(value):
                words += [option, _write_word(one)]
    return shlex.join(words)


def _list_values(value: Value) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from (f"{name}={_write_word(one)}" for name, one in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from value
    else:
        yield value


def _write_word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value.name if isinstance(value, Path) else str(value)

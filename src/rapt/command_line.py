"""The command that makes a result again, as every report states it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Value = str | int | float | bool | Path | Sequence[str | int | float] | Mapping[str, object] | None


def rebuild_command(command: str, *arguments: Path | str, **options: Value) -> str:
    """The line `rapt COMMAND ARGUMENTS OPTIONS`, ready for a shell.

    Files and folders lose the folders that they are in: where something lies is nobody's business.

    Args:
        command: Its name.
        arguments: In their order.
        options: By name, with `_` for `-`. None and False leave an option out, True is a switch, a sequence repeats the
            option, and a mapping repeats it as NAME=VALUE.
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

"""Methods that tune a frozen backbone: one module a method, whose entry `METHOD` has all that is known of it.

A method is known by the name of its module. Jobs, cards, files, documents and the page ask `METHODS` and nothing else;
its names are there without torch, and a module is imported when its entry is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from rapt.service.adapter.methods.method import Method

PROMPT_TUNING: Final = "prompt_tuning"
LORA: Final = "lora"
LINEAR_PROBING: Final = "linear_probing"

_NAMES: Final = (
    PROMPT_TUNING,
    "p_tuning",
    "prefix_tuning",
    LORA,
    LINEAR_PROBING,
)


class _Methods(Mapping[str, "Method"]):
    def __getitem__(self, name: str) -> Method:
        if name not in _NAMES:
            raise KeyError(name)
        return cast("Method", import_module(f"{__name__}.{name}").METHOD)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


METHODS: Final[Mapping[str, Method]] = _Methods()

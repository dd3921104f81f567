"""Options of OpenAI that nobody here offers, and the values by which they ask for nothing; bounds of a conversation.

The service takes such options and leaves them out, and the gateway does not send them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Bounds of a conversation: what is public in it is put into a template and tokenized before it is counted.
MOST_MESSAGES: Final = 64
MOST_PARTS: Final = 16
# Values beside null.
HARMLESS_OPTIONS: Final[Mapping[str, tuple[object, ...]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
    "prompt_cache_retention": ("in-memory", "in_memory"),
}
HARMLESS_OF_A_MESSAGE: Final[Mapping[str, tuple[object, ...]]] = {
    "refusal": (),
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "annotations": ([],),
}


def is_one_of(value: object, values: tuple[object, ...]) -> bool:
    """Return whether a value of JSON is one of a few: true is 1 in Python, and not in JSON."""
    return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in values)

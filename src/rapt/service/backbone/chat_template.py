"""The chat template of a decoder: the public ids around one message of the user, as the model's authors put them.

A template writes a text around a text, and here no text of a user ever is. So it is filled once, with a stand-in that
no text has; what stands before and behind it is public, the same for every message, and is tokenized alone.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapt.service.backbone.frame import make_tokenizer
from rapt.service.backbone.library import render_chat

log = logging.getLogger(__name__)

TEMPLATE: Final = "chat_template.jinja"
_SETTINGS: Final = "tokenizer_config.json"
# Of the private-use area: no template has it, and none that trims a message trims it.
_STAND_IN: Final = "\ue0a7"


@dataclass(frozen=True)
class ChatFrame:
    """Ids before and behind a message of the user; the model's answer follows."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def read_chat_frame(folder: Path, *, tokenizer_json: bytes, start: tuple[int, ...]) -> ChatFrame | None:
    """The chat frame of a model folder; None where there is no template, or none for a single message.

    Args:
        folder: In Hugging Face's layout, with `chat_template.jinja`, or the template in `tokenizer_config.json`.
        tokenizer_json: Its tokenizer.
        start: What every row begins with; a template that writes it too would have it twice.
    """
    settings = _settings(folder)
    template = _template(folder, settings)
    if template is None:
        return None
    try:
        bos, eos = _token(settings, "bos_token"), _token(settings, "eos_token")
        found = render_chat(template, _STAND_IN, bos_token=bos, eos_token=eos)
    except Exception as error:  # whatever a template raises, also about what it was not given
        log.warning("the chat template of a model is left out: it fails with %s", type(error).__name__)
        return None
    parts = found.split(_STAND_IN)
    if len(parts) != 2:
        log.warning("the chat template of a model is left out: it writes a message %d times", len(parts) - 1)
        return None
    tokenizer = make_tokenizer(tokenizer_json)
    before, after = (tuple(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)
    if start and before[: len(start)] == start:
        before = before[len(start) :]
    return ChatFrame(before, after)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _SETTINGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _token(settings: dict[str, Any], name: str) -> str:
    found = settings.get(name)
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""

"""The frame: the public token ids that stand around a text, as the model's own tokenizer puts them.

A record holds content tokens alone. What a backbone was trained to see around them is read off the tokenizer, by
tokenizing one public letter, once alone and once as a pair.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from rapt.errors import UsageError, VocabularyError
from rapt.service.backbone.library import render_chat
from rapt.wire.model_files import make_tokenizer

_LETTER: Final = "a"
# What comes between two texts where a tokenizer puts no token of its own: the end of a line, as byte-level tokenizers
# write it and as SentencePiece does.
_LINE_ENDS: Final = ("Ċ", "<0x0A>")
_SENTINEL: Final = "<extra_id_0>"
_MASKS: Final = ("[MASK]", "<mask>")  # BERT's, and that of RoBERTa and BART


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Ids around texts; all of them public and the same for every record.

    Attributes:
        start: Before everything: BERT ([CLS],), Llama (<s>,), T5 and GPT-2 none.
        between: Between the two texts of a pair: BERT ([SEP],), T5 (</s>,), decoders the end of a line.
        end: After everything: BERT ([SEP],), T5 (</s>,), decoders none.
        pad_id: Fills places that attention does not see.
        mask_id: Stands for a word to be predicted; None where the tokenizer has no [MASK] or <mask>.
        sentinel_id: T5's first sentinel, which stands for missing words; None where the tokenizer has none.
        decoder_start: Tokens that an encoder-decoder's second half begins with, T5 (<pad>,), BART (</s>, <s>); empty
            for the others.
        eos_id: Ends a generated text; None for a model that generates none.
    """

    start: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]
    pad_id: int
    mask_id: int | None
    sentinel_id: int | None
    decoder_start: tuple[int, ...]
    eos_id: int | None


def frame_of(tokenizer_json: bytes, *, config: Mapping[str, Any], causal: bool) -> Frame:
    """The frame of a model.

    Args:
        tokenizer_json: Content of the model's `tokenizer.json`.
        config: Content of the model's `config.json`.
        causal: Whether it is a decoder, which takes two texts as lines of one.
    """
    tokenizer = make_tokenizer(tokenizer_json)
    content = tokenizer.encode(_LETTER, add_special_tokens=False).ids
    alone = tokenizer.encode(_LETTER).ids
    pair = tokenizer.encode(_LETTER, _LETTER).ids
    first = _find(alone, content)
    start, end = alone[:first], alone[first + len(content) :]
    between = pair[len(start) + len(content) : len(pair) - len(content) - len(end)]
    line_end = next((place for name in _LINE_ENDS if (place := tokenizer.token_to_id(name)) is not None), None)
    eos: Any = config.get("eos_token_id")
    eos_id: int | None = eos[0] if isinstance(eos, list) and eos else eos
    if not between:
        between = end  # a tokenizer that was saved without a rule for pairs
    if causal:
        between = [place for place in (line_end if line_end is not None else eos_id,) if place is not None]
    decoder_start = config.get("decoder_start_token_id")
    pad_id = config.get("pad_token_id")
    return Frame(
        start=tuple(start),
        between=tuple(between),
        end=tuple(end),
        pad_id=pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0,
        mask_id=mask_id_of(tokenizer_json),
        sentinel_id=tokenizer.token_to_id(_SENTINEL),
        decoder_start=() if decoder_start is None else (decoder_start, *start),
        eos_id=eos_id,
    )


def _find(ids: list[int], content: list[int]) -> int:
    for place in range(len(ids) - len(content) + 1):
        if content and ids[place : place + len(content)] == content:
            return place
    raise VocabularyError(
        "a tokenizer must put its special tokens around a text and leave the text as it is; take another model"
    )


def mask_id_of(tokenizer_json: bytes) -> int | None:
    """Id of the token that stands for a word to be predicted; None where a tokenizer has none."""
    for token in json.loads(tokenizer_json).get("added_tokens") or []:
        if token["content"] in _MASKS:
            return int(token["id"])
    return None


# The chat template of a decoder: the public ids around the private ones, as the model's authors put them.
#
# A template writes a text around a text, and here no private text of a user ever is. So it is filled with a stand-in
# for each private part; what stands before, between and behind them is public, and is tokenized alone. For a single
# message that is done once: it is the same for all.


log = logging.getLogger(__name__)

TEMPLATE: Final = "chat_template.jinja"
_SETTINGS: Final = "tokenizer_config.json"
# The last private-use plane, a character for each private part: no template has them, and none that trims trims them.
_STAND_INS: Final = [chr(0x10_FE00 + number) for number in range(256)]
_IS_STAND_IN: Final = re.compile(f"[{_STAND_INS[0]}-{_STAND_INS[-1]}]")


@dataclass(frozen=True)
class Turn:
    """A message of a chat: public texts, and None in the place of each private part."""

    role: str
    parts: tuple[str | None, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """What writes a chat: the template, its tokens, and those that every row begins with anyway."""

    text: str
    bos_token: str
    eos_token: str
    start: tuple[int, ...]

    def frame(self, turns: Sequence[Turn], *, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
        """Public ids before, between and behind the private parts of a chat; the model's answer follows.

        Args:
            turns: Messages, first to last, with at most 256 private parts.
            tokenizer: Tokenizer of the model.

        Returns:
            One more than there are private parts.

        Raises:
            UsageError: The template does not take these messages, or does not write each private part once and in its
                place.
        """
        stand_ins = iter(_STAND_INS)
        messages = []
        for turn in turns:
            if any(part is not None and _IS_STAND_IN.search(part) for part in turn.parts):
                raise UsageError("a public text must have no characters of the last private-use plane; leave them out")
            content = "".join(next(stand_ins) if part is None else part for part in turn.parts)
            messages.append({"role": turn.role, "content": content})
        try:
            found = render_chat(self.text, messages, bos_token=self.bos_token, eos_token=self.eos_token)
        except Exception as error:  # whatever a template raises, also about roles in an order of which it knows nothing
            raise UsageError(
                f"the messages must be as the model's chat template takes them, it fails with {type(error).__name__}; "
                "most take a system message first, then the user and the assistant in turns"
            ) from None
        private = sum(part is None for turn in turns for part in turn.parts)
        if _IS_STAND_IN.findall(found) != _STAND_INS[:private]:
            raise UsageError(
                "the model's chat template must write each message once, in their order, and it does not write these; "
                "send fewer messages"
            )
        pieces = [tuple(tokenizer.encode(piece, add_special_tokens=False).ids) for piece in _IS_STAND_IN.split(found)]
        if self.start and pieces[0][: len(self.start)] == self.start:
            pieces[0] = pieces[0][len(self.start) :]
        return pieces


@dataclass(frozen=True)
class ChatFrame:
    """Ids before and behind a message of the user, which the model's answer follows; and what writes longer chats."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    template: ChatTemplate = field(repr=False)


def read_chat_frame(folder: Path, *, tokenizer_json: bytes, start: tuple[int, ...]) -> ChatFrame | None:
    """The chat frame of a model folder; None where there is no template, or none for a single message.

    Args:
        folder: Model folder with `chat_template.jinja`, or the template in `tokenizer_config.json`.
        tokenizer_json: Content of the model's `tokenizer.json`.
        start: Tokens that every row begins with; a template that writes it too would have it twice.
    """
    settings = _read_settings(folder)
    template = _read_template(folder, settings)
    if template is None:
        return None
    writer = ChatTemplate(template, _read_token(settings, "bos_token"), _read_token(settings, "eos_token"), start)
    try:
        before, after = writer.frame([Turn("user", (None,))], tokenizer=make_tokenizer(tokenizer_json))
    except UsageError as error:
        log.warning("the chat template of a model is left out: %s", error)
        return None
    return ChatFrame(before, after, writer)


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _SETTINGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _read_token(settings: dict[str, Any], name: str) -> str:
    found = settings.get(name)
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""

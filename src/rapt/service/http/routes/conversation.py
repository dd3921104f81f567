"""Chats: one private message in the template of a bare decoder, or several turns, of which some are public.

What a message holds privately is token ids, each with a manifest of its own; what it declares public is text, in clear.
The template is filled with stand-ins for the private parts, so nobody ever decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rapt.errors import LimitError, RaptError, UsageError
from rapt.service.backbone.frame import Turn
from rapt.service.http.admission import check_vocabulary
from rapt.service.http.assembly import Service
from rapt.service.http.completion_schemas import MOST_PUBLIC, ChatMessage, ChatRequest, PublicPart
from rapt.service.http.routes.answering import Prompt
from rapt.service.storage.callers import Caller
from rapt.wire.privatized_file import parse_query

# Roles of OpenAI's that templates know by another name.
_ROLES: Final[Mapping[str, str]] = {"developer": "system"}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of a chat whose last message is asked, and the privatization of those before.

    Attributes:
        turns: All messages, with None for each private part.
        earlier: Token ids and manifest of each private message but the last.
    """

    turns: tuple[Turn, ...]
    earlier: tuple[tuple[Sequence[int], Mapping[str, Any]], ...]

    @property
    def is_one_message(self) -> bool:
        """Whether it is a private message of the user and nothing else."""
        return self.turns == (Turn("user", (None,)),)


def read_conversation(body: ChatRequest) -> tuple[list[int], Conversation]:
    """The token ids that are asked, and the conversation around them.

    Raises:
        UsageError: The last message is not the user's with token ids, a message has several lists of them, or an
            earlier one has no manifest.
        LimitError: There is too much public text.
    """
    *before, last = body.messages
    if last.role != "user" or len(last.token_ids) != 1:
        raise _name(UsageError("the last message must be the user's and have one part of token ids"), "messages")
    private = [message.token_ids for message in before if message.token_ids]
    if any(len(ids) > 1 for ids in private):
        raise _name(UsageError("a message must have at most one part of token ids; send two messages"), "messages")
    if len(private) != len(body.rapt.earlier):
        error = UsageError(
            f"each earlier message of token ids must have a manifest of its own, got messages={len(private)} and "
            f"manifests={len(body.rapt.earlier)}; name them in their order"
        )
        raise _name(error, "rapt.earlier")
    public = sum(
        len(part.text) for message in body.messages for part in message.content if isinstance(part, PublicPart)
    )
    if public > MOST_PUBLIC:
        many = f"a chat must have at most {MOST_PUBLIC} characters of public text, got {public}; send less"
        raise _name(LimitError(many), "messages")
    turns = tuple(Turn(_ROLES.get(message.role, message.role), _parts(message)) for message in body.messages)
    earlier = tuple((ids, manifest) for (ids,), manifest in zip(private, body.rapt.earlier, strict=True))
    return last.token_ids[0], Conversation(turns=turns, earlier=earlier)


def frame_chat(service: Service, conversation: Conversation, caller: Caller, prompt: Prompt) -> Prompt:
    """The prompt in the chat template of its bare decoder; an adapter was tuned and is asked without one.

    Raises:
        UsageError: The model takes a single message, or its template not these.
        QuotaError: The tenant has used up its tokens of this minute.
        Others: The reasons of `Gate.admit_file`, of an earlier message.
    """
    chat = service.backbones[prompt.backbone].chat
    first, second = prompt.texts
    if conversation.is_one_message:
        if chat is None or prompt.adapter is not None:
            return prompt
        return replace(
            prompt,
            framed=((*chat.before, *first, *chat.after), None)
            if second is None
            else ((*chat.before, *first), (*second, *chat.after)),
        )
    if chat is None or prompt.adapter is not None:
        reason = (
            "a tuned model, which is asked as it was tuned" if prompt.adapter else "a model without a chat template"
        )
        error = UsageError(
            f"public text and several messages must go to a base model that has a chat template, got {reason}; "
            "send one message of token ids alone"
        )
        raise _name(error, "messages")
    if second is not None:
        raise _name(UsageError("a message of a conversation must be one text, got a pair; send one"), "rapt.records")
    private = [_admit(service, ids, manifest, backbone=prompt.backbone) for ids, manifest in conversation.earlier]
    try:
        pieces = chat.template.frame(conversation.turns, tokenizer=service.tokenizers[prompt.backbone])
    except UsageError as error:
        error.param = "messages"
        raise
    whole = list(pieces[0])
    for ids, piece in zip([*private, first], pieces[1:], strict=True):
        whole += [*ids, *piece]
    context = len(whole) - len(first)
    service.quotas.spend_tokens(caller.tenant, context)
    return replace(prompt, framed=(tuple(whole), None), context=context)


def _admit(service: Service, ids: Sequence[int], manifest: Mapping[str, Any], *, backbone: str) -> tuple[int, ...]:
    """The ids of an earlier message, checked as a prompt's are."""
    try:
        query = parse_query(manifest, [{"token_ids": ids}])
        service.gate.check_manifest(query.manifest)
        check_vocabulary(query.manifest, expected=service.backbones[backbone].bundle.hash)
        service.gate.check_records(query)
    except RaptError as error:
        error.param = "rapt.earlier"
        raise
    return query.records[0].token_ids


def _parts(message: ChatMessage) -> tuple[str | None, ...]:
    return tuple(part.text if isinstance(part, PublicPart) else None for part in message.content)


def _name(error: RaptError, param: str) -> RaptError:
    error.param = param
    return error

"""Answers to prompts, piece by piece as they come: labels from one batch, texts from another, in one stream."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rapt.errors import UsageError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.batching import Ticket
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import row_of
from rapt.service.http.assembly import Service
from rapt.service.http.completion_schemas import PromptPrivacy, Usage
from rapt.service.http.leaving import CLIENT_LEFT, begun, left
from rapt.service.http.routes.prompts import Prompt, admit_prompts, check_answer
from rapt.service.http.routes.spelling import Piece, Spelling, Token
from rapt.service.storage.callers import Caller


@dataclass(eq=False)
class Answering:
    """Answers that are on their way to one client."""

    prompts: Sequence[Prompt]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    stops: list[Callable[[], None]] = field(default_factory=list)
    written: int = 0
    unwritten: int = 0  # of the tokens that were taken from the tenant's to be written

    async def pieces(self, request: Request) -> AsyncIterator[Piece]:
        """All that comes, until every prompt is answered.

        Raises:
            HTTPException: The client has left; nothing more is computed for it.
        """
        leaving = asyncio.ensure_future(left(request))
        unfinished = len(self.prompts)
        try:
            while unfinished:
                coming = asyncio.ensure_future(self.events.get())
                await asyncio.wait((coming, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    raise HTTPException(CLIENT_LEFT)
                event = coming.result()
                if isinstance(event, Exception):
                    raise event
                if event.token is not None:
                    self.written += 1
                    self.unwritten -= self.prompts[event.index].is_written_to
                unfinished -= event.finish is not None
                yield event
        finally:
            leaving.cancel()
            self.stop()

    def stop(self) -> None:
        """Compute nothing more. Once is enough, and more do no harm."""
        while self.stops:
            self.stops.pop()()

    def usage(self) -> Usage:
        """Tokens read and written so far; a label counts as one."""
        read = sum(len(prompt.record.token_ids) + len(prompt.record.second_token_ids or ()) for prompt in self.prompts)
        return Usage(prompt_tokens=read, completion_tokens=self.written, total_tokens=read + self.written)

    def tell(self, event: Piece | Exception) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


async def start_answering(
    service: Service,
    prompts: Sequence[list[int]],
    *,
    model: str,
    privacy: PromptPrivacy,
    caller: Caller,
    most_tokens: int,
    sampling: Sampling,
    stops: Sequence[str] = (),
    as_chat: bool = False,
) -> Answering:
    """Answers to prompts, admitted and begun in a thread: the database is asked, and every id is checked.

    Args:
        service: What answers.
        prompts: As `admit_prompts` takes them, as `model`, `privacy`, `caller` and `most_tokens`.
        model: Of all prompts that `privacy` names no model for.
        privacy: Manifest, and what else stands in the records.
        caller: Who asks.
        most_tokens: Most that are written to each prompt whose answer is a text.
        sampling: How they are chosen.
        stops: Texts before the first of which an answer ends.
        as_chat: Whether what goes to a bare decoder is put into its chat template.

    Raises:
        RaptError: As `admit_prompts`, or a prompt cannot be answered, or too much waits.
    """
    loop = asyncio.get_running_loop()

    def begin() -> Answering:
        admitted = admit_prompts(service, prompts, model=model, privacy=privacy, caller=caller, most_tokens=most_tokens)
        check_answer(admitted, most_tokens=most_tokens, top=sampling.top_logprobs)
        answering = Answering(admitted, loop)
        try:
            _begin(
                service,
                answering,
                caller=caller,
                most_tokens=most_tokens,
                sampling=sampling,
                stops=stops,
                as_chat=as_chat,
            )
        except BaseException:
            answering.stop()
            raise
        return answering

    return await begun(run_in_threadpool(begin), undo=Answering.stop)


def _begin(
    service: Service,
    answering: Answering,
    *,
    caller: Caller,
    most_tokens: int,
    sampling: Sampling,
    stops: Sequence[str],
    as_chat: bool,
) -> None:
    answering.unwritten = most_tokens * sum(prompt.is_written_to for prompt in answering.prompts)
    answering.stops.append(lambda: service.quotas.give_back(caller.tenant, answering.unwritten))
    choosing: dict[str, list[int]] = {}
    for index, prompt in enumerate(answering.prompts):
        if not prompt.is_written_to:
            choosing.setdefault(prompt.backbone, []).append(index)
            continue
        if prompt.backbone not in service.writers:
            raise UsageError(
                f"text can be written by a decoder or an encoder-decoder, got model={prompt.backbone!r}, an encoder; "
                "tune a model that chooses among classes, or choose another base model"
            )
        first, second = texts_of(service, prompt, as_chat=as_chat)
        row = GenerationRow(
            token_ids=first,
            adapter=prompt.adapter,
            privatized_plain_tokens=prompt.record.privatized_plain_tokens,
            second_token_ids=second,
            most_tokens=most_tokens,
            sampling=replace(sampling, seed=(sampling.seed + index) % 2**63),  # prompts of one request differ
        )
        writer = service.writers[prompt.backbone]
        spelling = Spelling(service.tokenizers[prompt.backbone], index=index, tell=answering.tell, stops=stops)
        text = writer.submit(row, tenant=caller.tenant, tell=spelling, position=index)
        answering.stops.append(functools.partial(writer.cancel, text))
    for backbone, indices in choosing.items():
        predictor = service.predictors[backbone]
        chosen = [answering.prompts[index] for index in indices]
        ticket = predictor.submit(
            [row_of(prompt.record, adapter=prompt.adapter) for prompt in chosen], tenant=caller.tenant
        )
        answering.stops.append(functools.partial(predictor.cancel, ticket))
        ticket.future.add_done_callback(_labels(answering, indices, ticket, sampling.top_logprobs))


def texts_of(service: Service, prompt: Prompt, *, as_chat: bool) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The texts of a prompt, in the chat template of a bare decoder; an adapter was tuned and is asked without one."""
    first, second = prompt.record.token_ids, prompt.record.second_token_ids
    chat = service.backbones[prompt.backbone].chat
    if chat is None or prompt.adapter is not None or not as_chat:
        return first, second
    if second is None:
        return (*chat.before, *first, *chat.after), None
    return (*chat.before, *first), (*second, *chat.after)


def _labels(
    answering: Answering, indices: list[int], ticket: Ticket[tuple[float, ...]], top: int
) -> Callable[[object], None]:
    def done(_future: object) -> None:
        if ticket.future.cancelled():
            return
        error = ticket.future.exception()
        if error is not None:
            answering.tell(error if isinstance(error, Exception) else RuntimeError("a pass was interrupted"))
            return
        for index, probabilities in zip(indices, ticket.future.result(), strict=True):
            adapter = answering.prompts[index].adapter
            assert adapter is not None
            token = label_token(adapter, probabilities, top=top)
            answering.tell(Piece(index=index, text=token.text, token=token, finish="stop"))

    return done


def label_token(adapter: Adapter, probabilities: Sequence[float], *, top: int) -> Token:
    """The likeliest label as if it were one token, with the `top` likeliest."""
    logprobs = [math.log(max(probability, 1e-45)) for probability in probabilities]
    order = sorted(range(len(logprobs)), key=logprobs.__getitem__, reverse=True)
    labels = adapter.card.labels
    return Token(
        text=labels[order[0]],
        logprob=logprobs[order[0]],
        top=tuple((labels[place], logprobs[place]) for place in order[:top]),
    )

"""Answers to prompts: the prompts are checked and admitted, and the answers come piece by piece, in one stream.

Labels come from one batch, texts from another. A client that leaves is computed for no longer.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rapt.errors import LimitError, UsageError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.batching import Ticket
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import Predictor, row_of
from rapt.service.answers.rows import count_added_positions, spell_row
from rapt.service.http.admission import check_tuned, check_vocabulary
from rapt.service.http.assembly import Service
from rapt.service.http.completion_schemas import PromptPrivacy, Usage
from rapt.service.http.routes.models import load_tuned_adapters
from rapt.service.http.routes.pieces import Piece, Spelling, Token
from rapt.service.http.shares import run_in_thread
from rapt.service.storage.callers import Caller
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedRecord, parse_query

Begun = TypeVar("Begun")

# nginx's number for a client that closed the connection; nobody but the log sees it.
CLIENT_LEFT: Final = 499
GENERATION = "generation"
# Numbers in one answer: some 6 MB of JSON, which the event loop writes in a tenth of a second.
MOST_PROBABILITIES: Final = 262_144
MOST_MODELS: Final = 256  # that one request may name


async def begin_or_undo(work: Awaitable[Begun], *, undo: Callable[[Begun], object]) -> Begun:
    """Return what `work` begins; if the waiting task is cancelled meanwhile, it is undone as soon as it is there.

    A thread cannot be stopped: what it begins for nobody would be computed to the end.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
        raise


async def await_answers(
    ticket: Ticket[tuple[float, ...]], *, of: Predictor, request: Request
) -> list[tuple[float, ...]]:
    """The answers of a ticket, unless the client leaves before they are there.

    Args:
        ticket: The ticket to wait for.
        of: Predictor that gave the ticket, and is told when nobody waits any more.
        request: Request with a body that was read: only the end of the connection can still come.

    Raises:
        HTTPException: The client has left.
    """
    answer = asyncio.wrap_future(ticket.future)
    leaving = asyncio.ensure_future(wait_until_left(request))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(CLIENT_LEFT)
        return answer.result()
    finally:
        leaving.cancel()
        if not answer.done():
            of.cancel(ticket)


async def wait_until_left(request: Request) -> None:
    """Returns when the client closes the connection; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """One prompt, how it was privatized, and what answers it: an adapter, or without one the bare backbone."""

    record: PrivatizedRecord
    mechanism: MechanismSetting
    backbone: str
    adapter: Adapter | None
    framed: tuple[tuple[int, ...], tuple[int, ...] | None] | None = None  # its texts in a chat template
    context: int = 0  # tokens of a conversation around its text

    @property
    def texts(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """What is read before an answer is written."""
        return self.framed or (self.record.token_ids, self.record.second_token_ids)

    @property
    def is_written_to(self) -> bool:
        """Whether the answer is a text and not a label."""
        return self.adapter is None or self.adapter.card.task == GENERATION


def admit_prompts(
    service: Service,
    prompts: Sequence[list[int]],
    *,
    model: str,
    privacy: PromptPrivacy,
    caller: Caller,
    most_tokens: int,
) -> list[Prompt]:
    """The prompts of a request, each with its model; its tokens are taken from the tenant's.

    Args:
        service: Service that answers.
        prompts: Privatized token ids of the prompts.
        model: Model of the prompts for which `privacy` names none.
        privacy: Manifest, and what else stands in the records.
        caller: Sender of the request.
        most_tokens: Most that are written to each prompt whose answer is a text.

    Raises:
        UsageError: The lists are not of one length, or a prompt was privatized otherwise than its model's training
            text.
        NotFoundError: A model is not there, or not the caller's.
        LimitError: There are too many.
        QuotaError: The tenant has used up its tokens of this minute.
        Others: The reasons of `Gate.admit_file`.
    """
    most = service.settings.max_records_per_request
    if len(prompts) > most:
        raise LimitError(f"a request must have at most {most} prompts, got {len(prompts)}; send several")
    models = privacy.models or [model] * len(prompts)
    rest = privacy.records or [{}] * len(prompts)
    if not len(prompts) == len(models) == len(rest):
        raise UsageError(
            f"there must be one model and one record for each prompt, got prompts={len(prompts)}, "
            f"models={len(models)}, records={len(rest)}; leave out what is the same for all"
        )
    names = tuple(dict.fromkeys(models))
    if len(names) > MOST_MODELS:
        raise LimitError(f"a request must name at most {MOST_MODELS} models, got {len(names)}; send several")
    if any("token_ids" in record for record in rest):
        raise UsageError("the token ids must be in the prompt alone; take them out of rapt.records")
    query = parse_query(
        privacy.manifest, [{**record, "token_ids": ids} for record, ids in zip(rest, prompts, strict=True)]
    )
    # Before anything is looked up or loaded, what is known without; what models add, before anything is computed. Codes
    # with a second centre are known to the models that were tuned on them.
    bare = sum(name in service.backbones for name in models)
    service.quotas.spend_tokens(caller.tenant, query.manifest.tokens + most_tokens * bare)
    tuned = [name for name in names if name not in service.backbones]
    loaded: list[Adapter] = []
    manifest = stated = query.manifest
    if not service.gate.serves(manifest.vocabulary_hash):
        loaded = load_tuned_adapters(service, tuned, caller)
        for adapter in loaded:
            manifest = service.gate.name_served(manifest, card=adapter.card)
    service.gate.check_manifest(manifest)
    query = replace(query, manifest=manifest)
    service.gate.check_records(query)
    adapters: dict[str, tuple[str, Adapter | None]] = {}
    for name in names:
        if name in service.backbones:
            check_vocabulary(stated, expected=service.backbones[name].bundle.hash)
            adapters[name] = name, None
    for name, adapter in zip(tuned, loaded or load_tuned_adapters(service, tuned, caller), strict=True):
        check_tuned(query.manifest, card=adapter.card)
        adapters[name] = adapter.card.model, adapter
    admitted = [
        Prompt(
            record=record,
            mechanism=query.manifest.mechanism,
            backbone=adapters[name][0],
            adapter=adapters[name][1],
        )
        for record, name in zip(query.records, models, strict=True)
    ]
    added = sum(
        count_added_positions(service.backbones[prompt.backbone], row_of(prompt.record, adapter=prompt.adapter))
        + most_tokens * (prompt.adapter is not None and prompt.is_written_to)
        for prompt in admitted
    )
    if added:
        service.quotas.spend_tokens(caller.tenant, added)
    return admitted


def check_answer(prompts: Sequence[Prompt], *, most_tokens: int, top: int) -> None:
    """Refuse what would be answered with too many numbers: they are kept, sorted and written as JSON (`LimitError`).

    Args:
        prompts: Prompts that were admitted.
        most_tokens: Most that are written to each prompt whose answer is a text.
        top: Likeliest tokens that are told of each of these.
    """
    of_texts = most_tokens * top * sum(prompt.is_written_to for prompt in prompts)
    of_labels = sum(
        len(prompt.adapter.card.labels) for prompt in prompts if prompt.adapter and not prompt.is_written_to
    )
    if of_texts + of_labels > MOST_PROBABILITIES:
        raise LimitError(
            f"an answer must come of at most {MOST_PROBABILITIES} probabilities, classes of each prompt and likeliest "
            f"tokens of each token together, got {of_texts + of_labels}; send several requests, or lower logprobs"
        )


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
        leaving = asyncio.ensure_future(wait_until_left(request))
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
        read = sum(
            len(prompt.record.token_ids) + len(prompt.record.second_token_ids or ()) + prompt.context
            for prompt in self.prompts
        )
        return Usage(prompt_tokens=read, completion_tokens=self.written, total_tokens=read + self.written)

    def tell(self, event: Piece | Exception) -> None:
        """Hand an event to the loop, from any thread."""
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
    frame: Callable[[Prompt], Prompt] | None = None,
) -> Answering:
    """Answers to prompts, admitted and begun in a thread: the database is asked, and every id is checked.

    Args:
        service: Service that answers.
        prompts: Privatized ids; see `admit_prompts`.
        model: Model of the prompts for which `privacy` names none.
        privacy: Manifest, and what else stands in the records.
        caller: Sender of the request.
        most_tokens: Most that are written to each prompt whose answer is a text.
        sampling: Way in which they are chosen.
        stops: Texts before the first of which an answer ends.
        frame: Function that puts an admitted prompt into a chat; None leaves each as it is.

    Raises:
        RaptError: The reasons of `admit_prompts`, or a prompt cannot be answered, or too much waits.
    """
    loop = asyncio.get_running_loop()

    def begin() -> Answering:
        admitted = admit_prompts(service, prompts, model=model, privacy=privacy, caller=caller, most_tokens=most_tokens)
        if frame is not None:
            admitted = [frame(prompt) for prompt in admitted]
        check_answer(admitted, most_tokens=most_tokens, top=sampling.top_logprobs)
        answering = Answering(admitted, loop)
        try:
            _begin_rows(
                service,
                answering,
                caller=caller,
                most_tokens=most_tokens,
                sampling=sampling,
                stops=stops,
            )
        except BaseException:
            answering.stop()
            raise
        return answering

    return await begin_or_undo(run_in_thread(begin), undo=Answering.stop)


def _begin_rows(
    service: Service,
    answering: Answering,
    *,
    caller: Caller,
    most_tokens: int,
    sampling: Sampling,
    stops: Sequence[str],
) -> None:
    answering.unwritten = most_tokens * sum(prompt.is_written_to for prompt in answering.prompts)
    answering.stops.append(lambda: service.quotas.give_back(caller.tenant, answering.unwritten))
    choosing: dict[str, list[int]] = {}
    writing: dict[int, GenerationRow] = {}
    for index, prompt in enumerate(answering.prompts):
        if not prompt.is_written_to:
            choosing.setdefault(prompt.backbone, []).append(index)
            continue
        if prompt.backbone not in service.writers:
            raise UsageError(
                f"text can be written by a decoder or an encoder-decoder, got model={prompt.backbone!r}, an encoder; "
                "tune a model that chooses among classes, or choose another base model"
            )
        first, second = prompt.texts
        row = GenerationRow(
            token_ids=first,
            adapter=prompt.adapter,
            privatized_plain_tokens=prompt.record.privatized_plain_tokens,
            second_token_ids=second,
            most_tokens=most_tokens,
            sampling=replace(sampling, seed=(sampling.seed + index) % 2**63),  # prompts of one request differ
        )
        writing[index] = spell_row(service.backbones[prompt.backbone], row, mechanism=prompt.mechanism)
    _check_places(service, answering, writing)
    for index, row in writing.items():
        prompt = answering.prompts[index]
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
        ticket.future.add_done_callback(_make_label_callback(answering, indices, ticket, sampling.top_logprobs))


def _check_places(service: Service, answering: Answering, writing: Mapping[int, GenerationRow]) -> None:
    """Refuse texts that could never wait together, at whatever time they are asked for (`LimitError`)."""
    for backbone in {answering.prompts[index].backbone for index in writing}:
        rows = [row for index, row in writing.items() if answering.prompts[index].backbone == backbone]
        cost, most = sum(row.cost for row in rows), service.writers[backbone].most_of_a_tenant
        if len(rows) > 1 and cost > most:
            raise LimitError(
                f"the texts of a request must take at most {most} tokens, read and written, got {cost}; "
                "send fewer prompts at once, or lower max_tokens"
            )


def _make_label_callback(
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
            token = spell_label(adapter, probabilities, top=top)
            answering.tell(Piece(index=index, text=token.text, token=token, finish="stop"))

    return done


def spell_label(adapter: Adapter, probabilities: Sequence[float], *, top: int) -> Token:
    """The likeliest label as if it were one token, with the `top` likeliest."""
    logprobs = [math.log(max(probability, 1e-45)) for probability in probabilities]
    order = sorted(range(len(logprobs)), key=logprobs.__getitem__, reverse=True)
    labels = adapter.card.labels
    return Token(
        text=labels[order[0]],
        logprob=logprobs[order[0]],
        top=tuple((labels[place], logprobs[place]) for place in order[:top]),
    )

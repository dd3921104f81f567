"""Continuous batching: many callers' texts are written in one batch, and nobody waits for another's to end.

One thread goes from token to token. Before each, those that wait join the batch, in fair order between tenants, as far
as there is room; after it, those that have ended or were left by their callers go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Final, Literal

from rapt.errors import UnavailableError
from rapt.service.model.backbone import Backbone
from rapt.service.model.batching import BatchLimits, require_room, running_mean, told
from rapt.service.model.decoding import DecodingBatch
from rapt.service.model.fair_queue import FairQueue
from rapt.service.model.generation_row import GenerationRow, check_generation
from rapt.service.model.sampling import Choice

# Rows that are written at once: beyond it a step of a small decoder takes longer in proportion.
MAX_ROWS: Final = 16
Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """One more token of a text, or its end, or why it ends.

    Attributes:
        choice: The token; None at the end of the model's own accord, whose token is not part of the text.
        finish: With the last one: the model ended the text, or it has as many tokens as were asked for.
        error: Instead of both.
    """

    choice: Choice | None = None
    finish: Finish | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Text:
    """A text that is being written."""

    row: GenerationRow
    tenant: str
    tell: Callable[[Written], bool | None]
    written: int = 0
    left: bool = False

    @property
    def cost(self) -> int:
        """Positions that it takes at most, about."""
        return self.row.positions + self.row.most_tokens


class LineSpeed:
    """How fast a line moves, measured where it moves: at what leaves it to be written.

    What a text costs in the line is the most it can take. It may end early, and its prompt is read at once and not
    token by token, so the time of a token says little about how long the line takes. What says it is the time between
    those that leave.
    """

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.seconds_per_cost = 0.0
        self._since: float | None = None

    def moved(self, taken: int, *, left: int, now: float) -> None:
        """Look at the line.

        Args:
            taken: Cost of what leaves it now; may be 0.
            left: Cost of what still waits. The time with nobody in the line is no measure of it.
            now: Of a clock, s.
        """
        if self._since is not None and taken:
            self.seconds_per_cost = running_mean(self.seconds_per_cost, (now - self._since) / taken)
        if not left:
            self._since = None
        elif self._since is None or taken:
            self._since = now


class Writer:
    """Texts of one decoder or encoder-decoder; safe to use from many threads."""

    def __init__(self, backbone: Backbone, *, limits: BatchLimits | None = None, rows: int = MAX_ROWS) -> None:
        """Start the thread that computes."""
        self._backbone = backbone
        self._limits = limits or BatchLimits()
        self._most = rows
        self._queue: FairQueue[Text] = FairQueue(quantum=self._limits.quantum)
        self._batch = DecodingBatch(backbone)
        self._texts: list[Text] = []
        self._changed = Condition()
        self._closing = False
        self._speed = LineSpeed()
        self._thread = Thread(target=self._loop, name=f"rapt-writer-{backbone.model}", daemon=True)
        self._thread.start()

    def submit(
        self, row: GenerationRow, *, tenant: str, tell: Callable[[Written], bool | None], position: int = 0
    ) -> Text:
        """Let a text wait to be written.

        Args:
            row: To be continued.
            tenant: Whose turn it uses.
            tell: Called in the thread that computes, with one token after the other, and with the end last, unless it
                says before that it has enough (True).
            position: Of the text in its request, for messages.

        Raises:
            UsageError: It cannot be written.
            BusyError: Too much waits already.
            UnavailableError: The service is stopping.
        """
        check_generation(self._backbone, row, position=position)
        text = Text(row, tenant, tell)
        with self._changed:
            if self._closing:
                raise UnavailableError("the service must not be stopping; send the request again later")
            require_room(
                self._queue,
                text.cost,
                tenant=tenant,
                limit=self._limits.waiting_cost,
                seconds_per_cost=self._speed.seconds_per_cost,
            )
            self._queue.push(text, tenant=tenant, cost=text.cost)
            self._changed.notify()
        return text

    def cancel(self, text: Text) -> None:
        """Forget a caller: its text ends before the next token."""
        with self._changed:
            text.left = True
            self._queue.remove(lambda other: other is text, tenant=text.tenant)

    @property
    def waiting_cost(self) -> int:
        """Of all texts that wait; those being written are not counted."""
        with self._changed:
            return self._queue.cost

    def close(self) -> None:
        """Finish the token that is being written, refuse the rest, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._texts or self._queue.cost):
                    self._changed.wait()
                if self._closing:
                    refusal = UnavailableError("the service is stopping; send the request again later")
                    for text in [*self._texts, *self._queue.clear()]:
                        _tell(text, Written(error=refusal))
                    return
                joining: list[Text] = []
                while self._queue.cost and len(self._texts) + len(joining) < self._most:
                    joining += self._queue.take(budget=0)  # one
                taken = sum(text.cost for text in joining)
                self._speed.moved(taken, left=self._queue.cost, now=time.monotonic())
            self._step()
            self._join(joining)

    def _step(self) -> None:
        """One token for each text in the batch."""
        self._leave()
        if not self._texts:
            return
        try:
            choices = self._batch.step()
        except Exception as error:  # whatever it is, callers wait for it, and the thread must go on for the others
            for text in self._texts:
                text.left = True
                _tell(text, Written(error=told(error)))
            self._leave()
            return
        for text, choice in zip(self._texts, choices, strict=True):
            self._write(text, choice)

    def _join(self, texts: list[Text]) -> None:
        """Read new texts and write their first tokens."""
        texts = [text for text in texts if not text.left]
        if not texts:
            return
        try:
            choices = self._batch.join([text.row for text in texts])
        except Exception as error:  # likewise
            if len(texts) == 1:
                _tell(texts[0], Written(error=told(error)))
                return
            for text in texts:  # one of them is the reason
                self._join([text])
            return
        self._texts += texts
        for text, choice in zip(texts, choices, strict=True):
            self._write(text, choice)

    def _write(self, text: Text, choice: Choice) -> None:
        text.written += 1
        if choice.token_id == self._backbone.frame.eos_id:
            text.left = True
            _tell(text, Written(finish="stop"))
        elif text.written == text.row.most_tokens:
            text.left = True
            _tell(text, Written(choice=choice, finish="length"))
        elif not text.left and _tell(text, Written(choice=choice)):
            text.left = True

    def _leave(self) -> None:
        staying = [place for place, text in enumerate(self._texts) if not text.left]
        self._batch.keep(staying)
        self._texts = [self._texts[place] for place in staying]


def _tell(text: Text, written: Written) -> bool:
    """Whether the listener has enough."""
    with suppress(Exception):  # whoever listened is gone: its loop is closed
        return text.tell(written) is True
    return True

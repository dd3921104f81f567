"""Continuous batching: many callers' texts are written in one batch, and nobody waits for another's to end.

One thread goes from token to token. Before each, places are shared out: a tenant that waits gets a free one, or one of
the tenant that has most, whose youngest text is then put aside with all that it has read and goes on later. So however
much one tenant asks for, another's first token comes with the next step. With more tenants than places, a text that has
had its turn makes room. After each token, those that have ended or were left by their callers go.

Rows of one lane share a pass; those with a long prefix or of great length have lanes of their own, so that nobody
else's are filled up to theirs. A text whose seed was asked for has a lane to itself, so that its numbers depend on
nothing else; of these, each tenant has one pass a step.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Final, Literal, Protocol, TypeVar

from rapt.errors import UnavailableError
from rapt.service.answers.batching import TENANT_SHARE, BatchLimits, FairQueue, require_room, told, update_mean
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import Choice, GenerationRow, check_generation
from rapt.service.answers.prediction import Predictor
from rapt.service.answers.rows import SHORT_PREFIX, choose_size_class, cut_into_passes
from rapt.service.backbone.backbone import Backbone

# Rows that are written at once: beyond it a step of a small decoder takes longer in proportion.
MAX_ROWS: Final = 16
# Tokens that a text writes at least before it makes room for a tenant that has no place at all.
TURN: Final = 64
# Positions up to which rows share a cache whatever their lengths; a row that is longer would have the others filled up.
SHORT_TEXT: Final = 1024
Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """One more token of a text, or its end, or why it ends.

    Attributes:
        choice: The token; None at the end of the model's own accord, whose token is not part of the text.
        finish: Reason of the end, with the last one: the model ended the text, or no more tokens were asked for.
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
    turn: int = 0  # tokens since it got its place
    aside: DecodingBatch | None = None  # what it has read and written, while it has no place

    @property
    def cost(self) -> int:
        """Positions that it takes at most, about."""
        return self.row.cost

    @property
    def lane(self) -> Hashable:
        """With what it shares a pass."""
        if self.row.sampling.repeatable:
            return id(self)
        return (
            "shared",
            choose_size_class(self.row.tuned.prefix_length, short=SHORT_PREFIX),
            choose_size_class(self.cost, short=SHORT_TEXT),
        )


@dataclass(eq=False)
class _Lane:
    """Texts that are written in one pass a token."""

    batch: DecodingBatch
    texts: list[Text] = field(default_factory=list)


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
            now: Time of a monotonic clock, s.
        """
        if self._since is not None and taken:
            self.seconds_per_cost = update_mean(self.seconds_per_cost, (now - self._since) / taken)
        if not left:
            self._since = None
        elif self._since is None or taken:
            self._since = now


T = TypeVar("T")


class Writes(Protocol[T]):
    """What writes texts for many callers, as a `Writer` does."""

    def submit(
        self, row: GenerationRow, *, tenant: str, tell: Callable[[Written], bool | None], position: int = 0
    ) -> T:
        """Let a text wait to be written."""

    def cancel(self, text: T) -> None:
        """Forget a caller, whose text is not written any further."""

    @property
    def most_of_a_tenant(self) -> int:
        """Cost that the texts of one tenant may have while they wait."""


class Writer:
    """Texts of one decoder or encoder-decoder; safe to use from many threads."""

    def __init__(self, backbone: Backbone, *, limits: BatchLimits | None = None, rows: int = MAX_ROWS) -> None:
        """Start the thread that computes."""
        self._backbone = backbone
        self._limits = limits or BatchLimits()
        self._most = rows
        self._queue: FairQueue[Text] = FairQueue(quantum=self._limits.quantum)
        self._lanes: dict[Hashable, _Lane] = {}
        self._aside: dict[str, deque[Text]] = {}
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
            row: Row to continue.
            tenant: Tenant whose turn the text uses.
            tell: Called in the thread that computes, with one token after the other, and with the end last, unless it
                says before that it has enough (True).
            position: Place of the text in its request, for messages.

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
    def most_of_a_tenant(self) -> int:
        """Cost that the texts of one tenant may have while they wait; one text alone may have more."""
        return int(self._limits.waiting_cost * TENANT_SHARE)

    @property
    def waiting_cost(self) -> int:
        """The total cost of the texts that wait to be begun; those being written or put aside are not counted."""
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
                while not (self._closing or self._lanes or self._aside or self._queue.cost):
                    self._changed.wait()
                if self._closing:
                    refusal = UnavailableError("the service is stopping; send the request again later")
                    aside = [text for texts in self._aside.values() for text in texts]
                    for text in [*self._list_texts(), *aside, *self._queue.clear()]:
                        _tell(text, Written(error=refusal))
                    return
                leaving, coming = self._share_out()
                new = [text for text in coming if text.aside is None]
                self._speed.moved(sum(text.cost for text in new), left=self._queue.cost, now=time.monotonic())
            for text in leaving:
                self._put_aside(text)
            self._make_step()
            for text in coming:
                if text.aside is not None:
                    self._take_up(text)
            self._join(new)

    def _list_texts(self) -> list[Text]:
        return [text for lane in self._lanes.values() for text in lane.texts]

    def _share_out(self) -> tuple[list[Text], list[Text]]:
        """Who makes room, and who gets a place; each tenant in turn that has fewest."""
        self._aside = {
            tenant: staying
            for tenant, texts in self._aside.items()
            if (staying := deque(text for text in texts if not text.left))
        }
        present = [text for text in self._list_texts() if not text.left]
        places = Counter(text.tenant for text in present)
        leaving: list[Text] = []
        coming: list[Text] = []
        reading = 0
        while waiting := [*self._aside, *(one for one in self._queue.tenants() if one not in self._aside)]:
            next_one = min(waiting, key=lambda tenant: places[tenant])
            if places.total() >= self._most:
                giving = _choose_who_makes_room(present, places, taker=next_one)
                if giving is None:
                    break
                present.remove(giving)
                leaving.append(giving)
                places[giving.tenant] -= 1
            if next_one in self._aside:
                text = self._aside[next_one].popleft()
                if not self._aside[next_one]:
                    del self._aside[next_one]
            else:
                text, _ = self._queue.take_of(next_one)
                reading += text.row.positions
            coming.append(text)
            places[next_one] += 1
            if reading >= self._limits.round_cost:
                break  # the others must not wait longer for their next tokens
        return leaving, coming

    def _put_aside(self, text: Text) -> None:
        lane = self._lanes[text.lane]
        place = lane.texts.index(text)
        # A batch of one is kept as it is: what is computed in it must not depend on when it was put aside.
        text.aside = lane.batch if len(lane.texts) == 1 else lane.batch.take_out(place)
        del lane.texts[place]
        if not lane.texts:
            del self._lanes[text.lane]
        self._aside.setdefault(text.tenant, deque()).append(text)

    def _take_up(self, text: Text) -> None:
        assert text.aside is not None
        lane = self._lanes.setdefault(text.lane, _Lane(DecodingBatch(self._backbone)))
        lane.batch.put_in(text.aside)
        lane.texts.append(text)
        text.aside, text.turn = None, 0

    def _make_step(self) -> None:
        """One token for each text; of each tenant's that are written alone, for one."""
        self._leave()
        had: set[str] = set()
        for key, lane in list(self._lanes.items()):
            first = lane.texts[0]
            if first.row.sampling.repeatable:
                if first.tenant in had:
                    continue
                had.add(first.tenant)
                self._lanes[key] = self._lanes.pop(key)  # its tenant's others come first next time
            try:
                choices = lane.batch.step()
            except Exception as error:  # whatever it is, callers wait for it, and the thread must go on for the others
                for text in lane.texts:
                    text.left = True
                    _tell(text, Written(error=told(error)))
                continue
            for text, choice in zip(lane.texts, choices, strict=True):
                self._write(text, choice)
        self._leave()

    def _join(self, texts: list[Text]) -> None:
        """Read new texts, short ones first, and write their first tokens."""
        texts = [text for text in texts if not text.left]
        costs, lanes = [text.row.positions for text in texts], [text.lane for text in texts]
        for chosen in cut_into_passes(costs, lanes=lanes, device=self._backbone.device.type):
            self._read([texts[place] for place in chosen])

    def _read(self, texts: list[Text]) -> None:
        lane = self._lanes.get(texts[0].lane) or _Lane(DecodingBatch(self._backbone))
        try:
            choices = lane.batch.join([text.row for text in texts])
        except Exception as error:  # likewise
            if len(texts) == 1:
                _tell(texts[0], Written(error=told(error)))
                return
            for text in texts:  # one of them is the reason
                self._read([text])
            return
        self._lanes[texts[0].lane] = lane
        lane.texts += texts
        for text, choice in zip(texts, choices, strict=True):
            self._write(text, choice)

    def _write(self, text: Text, choice: Choice) -> None:
        text.written += 1
        text.turn += 1
        if choice.token_id == self._backbone.frame.eos_id:
            text.left = True
            _tell(text, Written(finish="stop"))
        elif text.written == text.row.most_tokens:
            text.left = True
            _tell(text, Written(choice=choice, finish="length"))
        elif not text.left and _tell(text, Written(choice=choice)):
            text.left = True

    def _leave(self) -> None:
        for key, lane in list(self._lanes.items()):
            staying = [place for place, text in enumerate(lane.texts) if not text.left]
            lane.batch.keep(staying)
            lane.texts = [lane.texts[place] for place in staying]
            if not staying:
                del self._lanes[key]


def _choose_who_makes_room(texts: list[Text], places: Counter[str], *, taker: str) -> Text | None:
    """The youngest text of the tenant with most places, if the taker has fewer by two, or none and a turn is over."""
    holder, most = places.most_common(1)[0]
    if holder != taker and most > places[taker] + 1:
        return next((text for text in reversed(texts) if text.tenant == holder), None)
    if not places[taker]:
        return max((text for text in texts if text.turn >= TURN), key=lambda text: text.turn, default=None)
    return None


def _tell(text: Text, written: Written) -> bool:
    """Whether the listener has enough."""
    with suppress(Exception):  # whoever listened is gone: its loop is closed
        return text.tell(written) is True
    return True


@contextmanager
def compute_answers(
    backbones: Mapping[str, Backbone], *, limits: BatchLimits
) -> Iterator[tuple[dict[str, Predictor], dict[str, Writer]]]:
    """The predictors and writers of backbones by name, whose threads compute until the end of the block."""
    with ExitStack() as closing:
        predictors: dict[str, Predictor] = {}
        writers: dict[str, Writer] = {}
        readers: dict[int, Predictor] = {}  # by the encoder that they share with a model of tokens
        for name, backbone in sorted(backbones.items(), key=lambda item: item[1].reader is None):
            beside = readers.get(id(backbone.encoder)) if backbone.reader is None else None
            predictors[name] = Predictor(backbone, limits=limits, beside=beside)
            if backbone.reader is not None:
                readers.setdefault(id(backbone.encoder), predictors[name])
            closing.callback(predictors[name].close)
            if backbone.kind != "encoder":
                writers[name] = Writer(backbone, limits=limits)
                closing.callback(writers[name].close)
        yield predictors, writers

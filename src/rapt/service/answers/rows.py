"""A row of a batch, a privatized text with what a tenant's adapter adds to it, and which rows share a forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, check_texts, lay_out, sequence_length
from rapt.service.backbone.steering import NOTHING, Steering, Tuned
from rapt.wire.mechanism_setting import MechanismSetting


@dataclass(frozen=True, eq=False, kw_only=True)
class PrivateRow:
    """One privatized text or pair, and the adapter that answers it; without one, the bare backbone does.

    Attributes:
        token_ids: Privatized token ids M(x).
        adapter: Adapter that answers, or None.
        privatized_plain_tokens: Privatized plain tokens M(k).
        second_token_ids: M(x2), or None.
    """

    token_ids: tuple[int, ...]
    adapter: Adapter | None = None
    privatized_plain_tokens: tuple[int, ...] = ()
    second_token_ids: tuple[int, ...] | None = None

    @property
    def plain(self) -> tuple[int, ...]:
        """The plain tokens that take part: an adapter tuned without reconstruction has never seen any."""
        return self.privatized_plain_tokens if self.adapter is not None and self.adapter.card.plain_tokens else ()

    @property
    def tuned(self) -> Tuned:
        """Tensors that the adapter adds to every pass."""
        return NOTHING if self.adapter is None else self.adapter.tuned

    @property
    def added_positions(self) -> int:
        """Positions that a pass computes for the row beside its texts: prompt, prefix and plain tokens."""
        return self.tuned.prompt_length + self.tuned.prefix_length + len(self.plain)

    @property
    def positions(self) -> int:
        """Positions that a pass computes for the row: its length in the backbone, and its prefix; up to a short cue."""
        return sequence_length(
            prompt_length=self.tuned.prompt_length + self.tuned.prefix_length,
            plain_tokens=len(self.plain),
            text_tokens=len(self.token_ids) + len(self.second_token_ids or ()),
        )


def count_added_positions(backbone: Backbone, row: PrivateRow) -> int:
    """Positions that a pass computes beside the ids of a row before it is spelled, with the other vectors of a code."""
    ids = len(row.token_ids) + len(row.second_token_ids or ())
    return row.added_positions + (backbone.vectors_per_id - 1) * ids


Row = TypeVar("Row", bound=PrivateRow)


def spell_row(backbone: Backbone, row: Row, *, mechanism: MechanismSetting | None = None) -> Row:
    """The row with the ids that the backbone embeds: in the place of a code, the vectors that its reader makes.

    A code is read as if it had been released at the ε that its model was tuned at, which may be another than its own:
    that is the kind of vectors that the model knows. Without a reader, and for tokens, the row is as it was.

    Args:
        backbone: Backbone of the row.
        row: Row with ids as they were released.
        mechanism: Mechanism by which they were privatized, for a row without an adapter; None takes the highest ε that
            the reader knows.
    """
    reader = backbone.reader
    if reader is None or (row.adapter is not None and row.adapter.card.vocabulary_hash != backbone.bundle.hash):
        return row
    setting = mechanism if row.adapter is None else row.adapter.card.mechanism
    epsilon = reader.epsilons[-1] if setting is None else setting.epsilon
    second = row.second_token_ids
    return replace(
        row,
        token_ids=reader.spell(row.token_ids, epsilon=epsilon),
        second_token_ids=None if second is None else reader.spell(second, epsilon=epsilon),
    )


def check_fit(backbone: Backbone, row: PrivateRow, *, position: int, other_tokens: int) -> None:
    """Refuse a row whose texts do not fit beside what its adapter adds and `other_tokens` (`UsageError`)."""
    check_texts(
        backbone,
        row.token_ids,
        row.second_token_ids,
        prompt_length=row.tuned.prompt_length,
        plain_tokens=len(row.plain),
        position=position,
        other_tokens=other_tokens,
    )


def lay_out_rows(
    backbone: Backbone,
    rows: Sequence[PrivateRow],
    *,
    steering: Steering,
    cues: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """The layout of rows that share a pass.

    Args:
        backbone: Backbone whose frame goes around the texts.
        rows: Rows of the pass.
        steering: Steering of these rows, in the same order.
        cues: Public tokens behind each text that ask for the answer; None for none.
    """
    return lay_out(
        backbone,
        prompt_lengths=steering.prompt_lengths,
        privatized_plain_tokens=[row.plain for row in rows],
        texts=[row.token_ids for row in rows],
        second_texts=[row.second_token_ids for row in rows],
        cues=cues,
    )


# Rows of one lane and of like length share a forward pass.
#
# A pass computes every row at the length of its longest, so a short row among long ones costs as much as they do. Cut
# too finely, though, and each pass has too few rows to keep the processor busy.


# Rows of one pass: more make it no faster a row, and hold up whoever comes meanwhile.
MAX_ROWS: Final = 64
# Positions of one pass, padding included, by the kind of device: bounds the memory that a pass takes. A processor is at
# its fastest from some 400 on, and what smaller passes free is of use to the next ones. On a GPU it was not measured.
MAX_POSITIONS: Final[Mapping[str, int]] = {"cpu": 1024}
_ELSEWHERE: Final = 16_384
# A pass is begun anew when a row is more than this much longer than the shortest of the pass.
GROWTH: Final = 1.5
# Below this many positions a pass costs nearly the same whatever its length: short rows are kept together.
SHORT: Final = 48
# Prefixes and ranks of usual sizes share a pass: to fill them up costs a few keys, or a thin product.
SHORT_PREFIX: Final = 64
SHORT_RANK: Final = 64


def choose_size_class(length: int, *, short: int) -> int:
    """Rows of one class may be filled up to the longest of them: all that are short, or all within a factor of two."""
    return 0 if length <= short else (length - 1).bit_length()


def cut_into_passes(lengths: Sequence[int], *, lanes: Sequence[Hashable], device: str = "cpu") -> list[list[int]]:
    """Positions of the rows of each pass, short passes first; every row is in exactly one.

    Args:
        lengths: Positions that each row takes.
        lanes: Lane of each row; rows of different lanes never share a pass.
        device: The kind of device that computes.
    """
    most = MAX_POSITIONS.get(device, _ELSEWHERE)
    passes: list[list[int]] = []
    by_lane: dict[Hashable, list[int]] = {}
    for position, lane in enumerate(lanes):
        by_lane.setdefault(lane, []).append(position)
    for positions in by_lane.values():
        positions.sort(key=lengths.__getitem__)
        current: list[int] = []
        for position in positions:
            if current and _is_full(current, lengths, longest=lengths[position], most=most):
                passes.append(current)
                current = []
            current.append(position)
        passes.append(current)
    return sorted(passes, key=lambda chosen: lengths[chosen[-1]])


def _is_full(current: list[int], lengths: Sequence[int], *, longest: int, most: int) -> bool:
    unlike = longest > max(SHORT, GROWTH * lengths[current[0]])
    return unlike or len(current) >= MAX_ROWS or (len(current) + 1) * longest > most

"""The head over codes, solved instead of stepped: regularized logistic regression on what many texts released.

Where nothing but the task head is trained on codes, on a codebook or behind a reader, its loss is convex. So the
optimum is computed, with all records at once, and the one thing that noise makes matter, how far the weights are held
back, is chosen on the private codes themselves by cross-validation: 100 texts at ε = 1 want it a thousand times
stronger than 4,000 texts at ε = 8. That is post-processing of what was released, so it costs no privacy. Records of one
id and label are counted and not repeated: a million of them cost what the codebook costs, and 8 bytes each beside.
Where a text has several codewords nearly every record differs; then what each codeword says for each label is added up,
some thousand records at a time, so that no state is ever laid out.

Where the folder of a codebook has states of public text, a second head for answers at home is taught on them
(`rapt.teaching`), unless the crowd's codes say that its texts are of another kind: then that text teaches wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.centering import estimate_center
from rapt.errors import TuningError
from rapt.service.adapter.adapter import Adapter
from rapt.service.adapter.methods import LINEAR_PROBING
from rapt.service.adapter.task_head import TaskHead
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import encode_with_prompts
from rapt.service.tuning.head_solver import (
    FOLDS,
    choose_penalty,
    find_lowest_penalty,
    minimize_head,
    solve_head,
    tally_labels,
)
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.result import Progress, adapter_of, evaluate
from rapt.service.tuning.run import batches_per_epoch
from rapt.service.tuning.tasks import TASKS, Classes, label_losses
from rapt.service.tuning.tuning_config import TuningConfig, make_default_config
from rapt.teaching import teach_head
from rapt.wire.code_bundle import CodeBundle, apply_center
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord

_ROWS_AT_ONCE: Final = 4096
# Length of a crowd's mean code from which on public text is of another kind. Maps of the texts' own kind had 0.04 to
# 0.33, those of another 0.51 to 0.86; teaching by these gained 1.6 points at best and cost 19 at worst
# (docs/results/text_codes.md).
MOST_APART: Final = 0.45
_LEAST_SHARE: Final = 1e-6  # of a label that a home would divide by
_ROWS_AT_ONCE_OF_A_MODEL: Final = 64
# Records of several codewords whose answers are added up at once.
_SUMMED: Final = 16_384
# Settings of a run of steps, which a head that is solved has not.
_OF_STEPS: Final = ("epochs", "batch_size", "learning_rate", "patience")


def is_solved(config: TuningConfig, *, backbone: Backbone) -> bool:
    """Whether the run trains a head on codes and nothing else."""
    return backbone.code is not None and config.method == LINEAR_PROBING


def check_code_config(config: TuningConfig) -> None:
    """Refuse settings of steps where none are made (`TuningError`)."""
    usual = make_default_config(config.method)
    asked = [name for name in _OF_STEPS if getattr(config, name) != getattr(usual, name)]
    if asked:
        raise TuningError(
            f"a head over codes is solved and not stepped, got {', '.join(asked)}; leave that to the service"
        )


def tune_code_head(
    backbone: Backbone,
    training: PrivatizedFile,
    *,
    config: TuningConfig,
    validation: PrivatizedFile | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Adapter:
    """Return the adapter whose head has the lowest regularized loss on a checked file of codes.

    Args:
        backbone: A codebook, or a language model behind a reader.
        training: Codes with labels, true or randomized; the loss is corrected for randomized ones.
        config: The run; its seed cuts the folds.
        validation: Evaluated once, at the end.
        on_progress: Called at the end.
        should_stop: Asked before each penalty that is tried.
        on_warning: Told where no second head was taught, though there is public text.

    Raises:
        TuningError: Settings of steps were asked for.
        TuningCancelled: `should_stop` said yes.
    """
    check_code_config(config)
    tuning = Tuning(backbone, training.manifest, config)
    crowd = _sum_up(backbone, training) or _count(tuning, backbone, training)
    penalty = crowd.choose_penalty(seed=config.seed, should_stop=should_stop)
    weight, bias = crowd.solve(penalty=penalty)
    head = _make_head(tuning)
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
    losses, shares = crowd.judge(weight, bias)
    judged = {} if validation is None else evaluate(tuning, validation, batch_size=_count_rows_at_once(backbone))
    steps = config.epochs * batches_per_epoch(len(training.records), size=config.batch_size)
    on_progress(Progress(step=steps, steps=steps, epoch=config.epochs - 1, losses=losses, validation=judged, last=True))
    metrics = {"step": steps, "penalty": penalty, **losses, **judged}
    shares = shares.float().clamp(min=_LEAST_SHARE)
    made = adapter_of(backbone, training, tuning, config=config, metrics=metrics)
    taught = _teach(backbone, training, weight, bias, shares, on_warning=on_warning)
    return replace(made, label_shares=shares, taught=taught)


def _teach(
    backbone: Backbone,
    training: PrivatizedFile,
    weight: Tensor,
    bias: Tensor,
    shares: Tensor,
    *,
    on_warning: Callable[[str], None],
) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a head over whole states; None without public text of the kind, and over pairs."""
    code, mechanism = backbone.code, training.manifest.mechanism
    if not backbone.is_codebook or code is None or backbone.public_states is None or training.manifest.pairs:
        return None
    if (apart := measure_apart(code, training)) > MOST_APART:
        on_warning(
            f"answers at home come from the head over codes, and no second head was taught: the mean code of the crowd "
            f"has length {apart:.2f}, above {MOST_APART:g}, so its texts are of another kind than the public text"
        )
        return None
    head = teach_head(
        backbone.public_states,
        weight.numpy(),
        bias.numpy(),
        bundle=code if mechanism.center is None else apply_center(code, mechanism.center),
        setting=mechanism,
        shares=shares.double().numpy(),
    )
    on_device = (torch.from_numpy(part).float().to(backbone.device) for part in head)
    return next(on_device), next(on_device)


def measure_apart(code: CodeBundle, training: PrivatizedFile) -> float:
    """Return the length of a crowd's mean code, from 0 to 1, around the centre of the map's public text.

    It is 0 where the noise of few releases hides it. Where a first round told it, it is that of the first round.
    """
    mechanism = training.manifest.mechanism
    if mechanism.center is not None:
        offset = apply_center(code, mechanism.center).offset
        return 0.0 if offset is None else float(np.linalg.norm(offset) / math.sqrt(code.codes))
    ids = np.array([record.token_ids for record in training.records], dtype=np.int64)
    return 0.0 if len(ids) < 2 or code.pairs else estimate_center(code, mechanism, ids).length


@dataclass(frozen=True)
class _Counted:
    """Different states, (U, h), the labels of each, (U, C), and the place and the label of each record, (n,)."""

    states: Tensor
    counts: Tensor
    places: NDArray[np.int32]
    labels: NDArray[np.int32]
    private: LabelPrivacy | None

    def choose_penalty(self, *, seed: int, should_stop: Callable[[], bool]) -> float:
        return choose_penalty(
            self.states,
            self.places,
            self.labels,
            self.counts.shape[1],
            private=self.private,
            seed=seed,
            should_stop=should_stop,
        )

    def solve(self, *, penalty: float) -> tuple[Tensor, Tensor]:
        return solve_head(self.states, self.counts, penalty=penalty, label_privacy=self.private)

    def judge(self, weight: Tensor, bias: Tensor) -> tuple[dict[str, float], Tensor]:
        """Loss and accuracy over all records, and the share of each label in the answers to them, (C,)."""
        logits = self.states @ weight.T + bias
        rows, labels = self.counts.nonzero(as_tuple=True)
        shares = self.counts[rows, labels] / self.counts.sum()
        right = (logits.argmax(dim=1)[rows] == labels).double() @ shares
        loss = label_losses(logits[rows], labels, label_privacy=self.private) @ shares
        answers = (self.counts.sum(dim=1) / self.counts.sum()) @ logits.softmax(dim=1)
        return {"train_loss": loss.item(), "train_mean_token_accuracy": right.item()}, answers


@dataclass(frozen=True)
class _Summed:
    """Records whose states are sums of rows of a table, (R, h): the rows of each, (n, r), and its label, (n,)."""

    table: Tensor
    rows: Tensor
    labels: Tensor
    classes: int
    private: LabelPrivacy | None

    def choose_penalty(self, *, seed: int, should_stop: Callable[[], bool]) -> float:
        drawn = np.random.default_rng(seed).permutation(len(self.labels)) % FOLDS
        folds = torch.from_numpy(drawn.astype(np.int8))

        def judge(penalty: float) -> float:
            loss = 0.0
            for fold in range(FOLDS):
                left_out = self._choose(folds == fold)
                if 0 < len(left_out.labels) < len(self.labels):
                    weight, bias = self._choose(folds != fold).solve(penalty=penalty)
                    loss += left_out.judge(weight, bias)[0]["train_loss"] * len(left_out.labels)
            return loss

        return find_lowest_penalty(judge, should_stop=should_stop)

    def _choose(self, which: Tensor) -> _Summed:
        return replace(self, rows=self.rows[which], labels=self.labels[which])

    def solve(self, *, penalty: float) -> tuple[Tensor, Tensor]:
        count, squares = max(1, len(self.labels)), 0.0
        for rows, _ in self._cut():
            squares += float(nn.functional.embedding_bag(rows, self.table, mode="sum").square().sum())
        scale = max(1e-12, math.sqrt(squares / (count * self.table.shape[1])))
        scaled = self.table / scale

        def fit(weight: Tensor, bias: Tensor) -> Tensor:
            votes = scaled @ weight.T
            cast, total = votes.detach().requires_grad_(), torch.zeros((), dtype=torch.float64)
            for rows, labels in self._cut():
                logits = nn.functional.embedding_bag(rows, cast, mode="sum") + bias
                loss = label_losses(logits, labels, label_privacy=self.private).sum() / count
                loss.backward()  # type: ignore[no-untyped-call]  # torch does not say what it returns
                total += loss.detach()
            votes.backward(cast.grad)  # type: ignore[no-untyped-call]  # nor here
            return total

        weight, bias = minimize_head(fit, shape=(self.classes, self.table.shape[1]), penalty=penalty)
        return weight / scale, bias

    @torch.no_grad()
    def judge(self, weight: Tensor, bias: Tensor) -> tuple[dict[str, float], Tensor]:
        """Return what `judge` of `_Counted` returns."""
        votes, answers = self.table @ weight.T, torch.zeros(self.classes, dtype=torch.float64)
        loss = right = 0.0
        for rows, labels in self._cut():
            logits = nn.functional.embedding_bag(rows, votes, mode="sum") + bias
            loss += float(label_losses(logits, labels, label_privacy=self.private).sum())
            right += float((logits.argmax(dim=1) == labels).sum())
            answers += logits.softmax(dim=1).sum(dim=0)
        count = max(1, len(self.labels))
        return {"train_loss": loss / count, "train_mean_token_accuracy": right / count}, answers / count

    def _cut(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.labels), _SUMMED):
            some = slice(start, start + _SUMMED)
            yield self.rows[some].long(), self.labels[some].long()


def _sum_up(backbone: Backbone, training: PrivatizedFile) -> _Summed | None:
    """Return the records as sums; None where a text has one codeword, or a state is no sum of its codewords."""
    code, manifest = backbone.code, training.manifest
    if not backbone.is_codebook or code is None or code.codes == 1 or manifest.pairs:
        return None
    ids = np.fromiter((one for record in training.records for one in record.token_ids), dtype=np.int32)
    first = code.size * np.arange(code.codes, dtype=np.int32)
    return _Summed(
        # The mean state of a record: each of its codewords, divided by their number, in a run of its own.
        torch.from_numpy(backbone.bundle.embeddings.astype(np.float64) / code.codes),
        torch.from_numpy(ids.reshape(len(training.records), code.codes) + first),
        torch.from_numpy(_find_labels(training.records)),
        len(manifest.labels or ()),
        manifest.label_privacy,
    )


def _count(tuning: Tuning, backbone: Backbone, training: PrivatizedFile) -> _Counted:
    first: dict[object, int] = {}
    chosen: list[PrivatizedRecord] = []

    def place(one: PrivatizedRecord) -> int:
        found = first.setdefault((one.token_ids, one.second_token_ids), len(first))
        if found == len(chosen):
            chosen.append(one)
        return found

    records, manifest = training.records, training.manifest
    places = np.fromiter(map(place, records), dtype=np.int32, count=len(records))
    at_once = _count_rows_at_once(backbone)
    cut = range(0, len(chosen), at_once)
    states = torch.cat([_read(tuning, backbone, chosen[start : start + at_once]) for start in cut])
    states = states.cpu().double()  # a GPU reads, and a processor solves: in float64 few GPUs are fast
    labels = _find_labels(records)
    counts = tally_labels(places, labels, (len(first), len(manifest.labels or ())))
    return _Counted(states, counts, places, labels, manifest.label_privacy)


def _find_labels(records: Sequence[PrivatizedRecord]) -> NDArray[np.int32]:
    return np.fromiter((one.label for one in records), dtype=np.int32, count=len(records))


@torch.no_grad()
def _read(tuning: Tuning, backbone: Backbone, records: Sequence[PrivatizedRecord]) -> Tensor:
    """Return what the head reads of each record, (B, h) or (B, 3h)."""
    task = TASKS["classification"]
    assert isinstance(task, Classes)
    layout = task.lay_out(backbone, records, prompt_lengths=[0] * len(records), plain=False)
    states = encode_with_prompts(backbone, layout, None)
    return task.vectors(backbone, states, layout, compared=_make_head(tuning).compares)


def _count_rows_at_once(backbone: Backbone) -> int:
    return _ROWS_AT_ONCE if backbone.is_codebook else _ROWS_AT_ONCE_OF_A_MODEL


def _make_head(tuning: Tuning) -> TaskHead:
    head = tuning.task_head
    assert isinstance(head, TaskHead)
    return head

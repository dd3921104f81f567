"""Several processes that train one adapter together: each computes a share of every batch, and gradients are summed.

Started by `torchrun`, which gives each process its place; Accelerate finds out what they can talk over. (Tried with two
processes on one machine without a GPU; `accelerate launch --cpu` starts only one there.) A batch
is the same batch however many there are, so one process or several give the same adapter up to rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from rapt.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The place of this process among those of a run. By itself it is the only one, and nothing is exchanged.

    Attributes:
        rank: Number of this process, from 0. The first one reports and hands over run states.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def share(self, positions: Sequence[int]) -> Sequence[int]:
        """Return this process's share of a batch; nothing, where there are more processes than records."""
        return positions[self.rank :: self.count]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients, bit for bit the same."""
        if self.count == 1:
            return
        whole = list(parameters)
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in whole]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(whole, torch.split(flat, [value.numel() for value in whole]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=_find_device())
        torch.distributed.all_reduce(total)
        return [float(number) for number in total]

    def as_first_says(self, answer: bool) -> bool:
        """The first process's answer to a question that all of them were asked."""
        return self.sum(float(answer and self.first))[0] > 0


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """This process's place among those that were launched together, and left at the end; before a backbone is loaded.

    Who has begun to talk to the others already, through Accelerate or torch, goes on doing so afterwards.

    Raises:
        UsageError: Accelerate is not installed, or the others have been left before.
    """
    try:
        from accelerate import PartialState
    except ImportError:
        raise UsageError(
            "several processes need accelerate; run in the checkout: pip install -e '.[processes]'"
        ) from None
    ours = not torch.distributed.is_initialized()
    # Its functions have the group of the moment they are defined in as their default. Transformers loads it with a
    # model, and a group that they hold on to does not end when it is left: its threads live on.
    importlib.import_module("torch.distributed.nn.functional")
    state = PartialState(cpu=not torch.cuda.is_available())
    processes = Processes(rank=int(state.process_index), count=int(state.num_processes))
    if processes.count > 1 and not torch.distributed.is_initialized():
        raise UsageError(
            "processes that have left each other cannot join again; keep one join_processes() around it all"
        )
    yield processes
    # Threads that still talk when the interpreter ends abort the process, after all its work was done. An error leaves
    # nothing this way: the others may be waiting in an exchange, and the launcher ends them.
    if ours:
        state.destroy_process_group()


def _find_device() -> str:
    # What the processes talk over on a GPU takes tensors of the GPU only.
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"

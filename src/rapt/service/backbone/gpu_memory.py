"""The memory of GPUs: what a process may take of it, what must be free before anything is served, and its errors.

A service and the process of its jobs have the same models on the same GPU, each its own copy. So that neither takes
what the other was promised, both have a bound, which torch's allocator keeps: beyond it, an operation fails with an
error of memory, although the GPU may have some, and is answered as on a processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from rapt.errors import UsageError

# What a process takes of a GPU whatever it computes: CUDA's context and the kernels of its libraries, bytes.
_CONTEXT: Final = 1 << 30
# What answers take beside their models, at the least: states and scores of the positions of a pass, bytes.
_FOR_ANSWERS: Final = 1 << 30


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small, of the processor or of a GPU."""
    # torch has a class of its own for what it takes of a GPU's memory only. What CUDA and its libraries take beside,
    # and the processor's memory, have messages and nothing else; oneDNN's products need memory of their own.
    said = ("DefaultCPUAllocator", "could not create a primitive", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


@contextmanager
def room_for(model: str, place: torch.device) -> Iterator[None]:
    """Refuse a model whose tables, or the passes of whose laws, find too little memory on its device (`UsageError`)."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UsageError(
            f"the device {place} must hold model={model!r} and a pass of it, and has too little memory free; take "
            "another device, or a smaller model"
        ) from None


def measure_half_of_gpu(place: torch.device) -> int | None:
    """Half of the memory of a GPU, bytes; None of a processor."""
    return None if place.type == "cpu" else torch.cuda.mem_get_info(place)[1] // 2


def limit_gpu_memory(more: int | None) -> None:
    """Let this process take so many bytes beyond what it has on each GPU; None lets it take what there is.

    An operation that would take more fails with an error of memory, as on a processor.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch gives it no types
        return
    torch.cuda.empty_cache()
    for number in range(torch.cuda.device_count()):
        whole = torch.cuda.mem_get_info(number)[1]
        share = 1.0 if more is None else min(1.0, (torch.cuda.memory_reserved(number) + more) / whole)
        torch.cuda.set_per_process_memory_fraction(share, number)


def share_gpus(modules: Iterable[nn.Module], tables: Iterable[Tensor], *, job_bytes: int) -> None:
    """Leave room on the GPUs of loaded models for the process of jobs, which loads them once more.

    What must be free beside the models: for jobs, if any, those models again, what one job may take and a context; for
    answers, a gibibyte. What is left beyond that is for answers, which may not take what is for jobs.

    Args:
        modules: Loaded models; one may be named twice.
        tables: Their tables of words.
        job_bytes: Memory of one job; 0 where no process of jobs is started here.

    Raises:
        UsageError: A GPU has too little memory.
    """
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    tensors |= {id(table): table for table in tables}
    sizes = Counter[int]()
    for tensor in tensors.values():
        if tensor.device.type == "cuda":
            sizes[tensor.device.index or 0] += tensor.nbytes
    for number, size in sizes.items():
        for_jobs = size + job_bytes + _CONTEXT if job_bytes else 0
        free, whole = torch.cuda.mem_get_info(number)
        if free < for_jobs + _FOR_ANSWERS:
            beside = (
                f", and {for_jobs // 2**20} MiB for jobs: their copy, job_memory_bytes and CUDA" if job_bytes else ""
            )
            raise UsageError(
                f"the device cuda:{number} must have, beside the models of {size // 2**20} MiB, "
                f"{_FOR_ANSWERS // 2**20} MiB for answers{beside}, got {free // 2**20} MiB; lower job_memory_bytes, "
                "serve less, or run jobs elsewhere by `rapt worker`"
            )
        share = min(1.0, (torch.cuda.memory_reserved(number) + free - for_jobs) / whole)
        torch.cuda.set_per_process_memory_fraction(share, number)

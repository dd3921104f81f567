"""Devices that models compute on: chosen by name, bounded, refused in one line where one is missing or too small.

A model may be spread over several: its layers go where a map says, and everything else, tables, norms and heads, stays
on the main device, to which every layer hands its states back.

*Memory of GPUs.* A service and the process of its jobs have the same models on the same GPU, each its own copy. So that
neither takes what the other was promised, both have a bound, which torch's allocator keeps: beyond it, an operation
fails with an error of memory, although the GPU may have some, and is answered as on a processor.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from rapt.errors import UsageError, WireError
from rapt.service.backbone.steering import find_layers
from rapt.wire.strict_json import parse_object

# What `auto` means on this machine, for every command.
VARIABLE: Final = "RAPT_DEVICE"
MAP_VARIABLE: Final = "RAPT_DEVICE_MAP"
# Names of the devices through which torch finds GPUs: Nvidia's on a desktop, on Tegra and under Windows, and AMD's.
_GPU_DRIVERS: Final = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")
_DEVICE: Final = re.compile(r"cpu|cuda(?::(\d{1,3}))?", re.ASCII)


def choose_device(device: str) -> torch.device:
    """The device on which models compute.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: what `RAPT_DEVICE` says, else a GPU where there is one.

    Raises:
        UsageError: It is none of these, or torch finds no such GPU.
    """
    if device == "auto":
        device = os.environ.get(VARIABLE) or "auto"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise UsageError("the device must be auto, cpu, cuda or cuda:N, got another; choose one")
    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(
            "a GPU was asked for, and torch finds none that its build and the driver of this machine can use; "
            "take the device cpu, or install a torch for this driver"
        )
    if device != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise UsageError(f"the device must be below cuda:{torch.cuda.device_count()}, got {device}; choose another")
    place = torch.device(device)
    if place.type == "cuda":
        _try_out(place)
    return place


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether torch was built for GPUs and a driver of one is here; unlike `choose_device`, it asks no driver."""
    if torch.version.cuda is None and torch.version.hip is None:
        return False
    return any(next(devices.glob(name), None) is not None for name in _GPU_DRIVERS)


@functools.cache
def _try_out(place: torch.device) -> None:
    """Refuse a GPU that a torch of another build cannot compute on, or of which others have all memory."""
    try:
        torch.ones(1, device=place).add_(1).item()
    except torch.OutOfMemoryError:
        raise UsageError(
            f"the device {place} must have memory free, and others have all of it; take another device, or end them"
        ) from None
    except RuntimeError as error:
        raise UsageError(
            f"the device {place} must compute with this torch, built for CUDA {torch.version.cuda}, and the first "
            f"operation failed with {type(error).__name__}; install a torch for this GPU and its driver, or take the "
            "device cpu"
        ) from None


def prefers_bfloat16(place: torch.device) -> bool:
    """Whether a GPU has units for bfloat16, as all have since Ampere; older ones emulate it, slower than float32."""
    return torch.cuda.get_device_capability(place) >= (8, 0)


def send(tensors: Sequence[Tensor], place: torch.device) -> list[Tensor]:
    """The same numbers on a device, in one copy that the processor does not wait for.

    On a GPU, each copy out of ordinary memory has the processor wait. The GPU reads pinned memory by itself, in the
    order in which operations were asked for, and torch uses it for nothing else before.

    Args:
        tensors: Tensors on the processor, of one type.
        place: Device; where it is the processor, the tensors are as they were.
    """
    if place.type == "cpu":
        return list(tensors)
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    if place.type == "cuda":
        whole = whole.pin_memory()
    parts = torch.split(whole.to(place, non_blocking=True), [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def move_to(place: torch.device, module: nn.Module, *, model: str) -> None:
    """Put a model on its device; one that is too small for it is refused (`UsageError`)."""
    try:
        module.to(place)
    except torch.OutOfMemoryError:
        needed = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) // 2**20
        raise UsageError(
            f"the device {place} must hold model={model!r}, of {needed} MiB, and has too little memory free; "
            "take another device, or a smaller model"
        ) from None


# Where weights of a layer lie that are fetched for each pass: a folder that is memory-mapped.
_DISK: Final = "disk"
_LARGEST_MAP: Final = 1 << 20  # bytes
# Share of the free memory of a GPU that layers may take; the rest is for passes and for jobs.
_FOR_LAYERS: Final = 0.7
_FOLDER: Final = "rapt-layers-"


def spread(place: torch.device, whole: nn.Module, *, device_map: str, model: str) -> bool:
    """Put a model on its devices; whether weights of a layer are fetched for each pass.

    Args:
        place: Main device.
        whole: Model on the processor.
        device_map: `auto` fills the GPUs in turn, beginning with the main device; a file is a JSON object from names of
            layers, or beginnings of them, to `cpu`, `cuda:N` or `disk`. Empty leaves all on the main device.
        model: Name of the model, for messages.

    Raises:
        UsageError: The map is damaged, names no layer, or names a device that is not there or too small.
    """
    if not device_map:
        move_to(place, whole, model=model)
        return False
    if find_spec("accelerate") is None:
        raise UsageError("a device map needs the package accelerate; run: pip install accelerate")
    layers = find_layers(whole)
    if device_map == "auto":
        chosen = _fill_gpus(place, whole, layers, model=model)
    else:
        prefix = f"{getattr(whole, 'base_model_prefix', '')}."
        chosen = _read_map(Path(device_map), layers, prefix=prefix, model=model)
    elsewhere = {name: where for name, where in chosen.items() if where != str(place)}
    folder = _make_folder() if _DISK in elsewhere.values() else None
    fetched = False
    for name, where in elsewhere.items():
        if where in (_DISK, "cpu"):
            _fetch_for_each_pass(layers[name], place, folder=folder / name if folder and where == _DISK else None)
            fetched = True
        else:
            _send_away(layers[name], torch.device(where), model=model)
    with _take_out(whole, elsewhere):
        move_to(place, whole, model=model)
    return fetched


@contextmanager
def _take_out(whole: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Take layers out of a model for the block."""
    places = [(cast(nn.ModuleList, whole.get_submodule(name.rpartition(".")[0])), name) for name in names]
    out = [(parent, int(name.rpartition(".")[2])) for parent, name in places]
    layers = [parent[place] for parent, place in out]
    for parent, place in out:
        parent[place] = nn.Identity()
    try:
        yield
    finally:
        for (parent, place), layer in zip(out, layers, strict=True):
            parent[place] = layer


def fill_in_turn(sizes: Sequence[int], room: Sequence[int]) -> list[int] | None:
    """Place of each layer among devices that are filled one after the other; None where they do not all fit.

    Args:
        sizes: Bytes of each layer, in order.
        room: Bytes of each device.
    """
    found, device, left = [], 0, list(room)
    for size in sizes:
        while device < len(left) and left[device] < size:
            device += 1
        if device == len(left):
            return None
        left[device] -= size
        found.append(device)
    return found


def _fill_gpus(place: torch.device, whole: nn.Module, layers: Mapping[str, nn.Module], *, model: str) -> dict[str, str]:
    if place.type != "cuda":
        raise UsageError("the device map auto is for GPUs, and the main device is cpu; name a file, or no map")
    first = place.index or 0
    gpus = [first, *(number for number in range(torch.cuda.device_count()) if number != first)]
    room = [int(torch.cuda.mem_get_info(number)[0] * _FOR_LAYERS) for number in gpus]
    sizes = [_measure(layer) for layer in layers.values()]
    room[0] -= _measure(whole) - sum(sizes)
    found = fill_in_turn(sizes, room)
    if found is None:
        raise UsageError(
            f"{len(gpus)} GPUs must hold model={model!r}, of {_measure(whole) // 2**20} MiB, and have "
            f"{sum(room) // 2**20} MiB for its layers; name a map that puts some on cpu or disk, or a smaller model"
        )
    return {name: str(place) if not at else f"cuda:{gpus[at]}" for name, at in zip(layers, found, strict=True)}


def _read_map(path: Path, layers: Mapping[str, nn.Module], *, prefix: str, model: str) -> dict[str, str]:
    """Device of each named layer; names are those of the model with its head, or without the `prefix` of it."""
    try:
        if path.stat().st_size > _LARGEST_MAP:
            raise WireError("too large")
        asked = parse_object(path.read_bytes(), what="a device map")
    except (OSError, WireError):
        raise UsageError(
            'a device map must be auto, or a file with a JSON object such as {"model.layers.0": "cuda:1"}; correct it'
        ) from None
    found: dict[str, str] = {}
    for name, where in asked.items():
        begins = f"{name}.".removeprefix(prefix)
        own = [layer for layer in layers if f"{layer}.".removeprefix(prefix).startswith(begins)]
        if not own:
            example = next(iter(layers), None)
            raise UsageError(
                f"a device map must name layers of model={model!r}, such as {example!r}, got another name; everything "
                "else stays on the main device"
            )
        if where != _DISK:
            where = str(choose_device(where if isinstance(where, str) and where != "auto" else "another"))
        found |= dict.fromkeys(own, where)
    return found


def _measure(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _send_away(layer: nn.Module, where: torch.device, *, model: str) -> None:
    """Let a layer compute on a device of its own, and hand its states back to where they came from."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    move_to(where, layer, model=model)
    add_hook_to_module(layer, AlignDevicesHook(execution_device=where, io_same_device=True))


def _fetch_for_each_pass(layer: nn.Module, place: torch.device, *, folder: Path | None) -> None:
    """Keep the weights of a layer in memory or in a folder, and compute it on a device, one pass at a time."""
    from accelerate import cpu_offload, disk_offload

    if folder is None:
        cpu_offload(layer, execution_device=place)
    else:
        disk_offload(layer, folder, execution_device=place)
    # A pass that ends takes the weights away, which another one may be reading.
    layer.forward = functools.partial(_run_one_at_a_time, Lock(), layer.forward)


def _run_one_at_a_time(lock: Lock, forward: Callable[..., Any], *inputs: Any, **others: Any) -> Any:
    with lock:
        return forward(*inputs, **others)


def _make_folder() -> Path:
    """Make a folder of this process for weights, and remove those of processes that have ended."""
    for old in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        number = old.name.removeprefix(_FOLDER).partition("-")[0]
        with suppress(OSError):
            if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))


# What a process takes of a GPU whatever it computes: CUDA's context and the kernels of its libraries, bytes.
_CONTEXT: Final = 1 << 30
# What answers take beside their models, at the least: states and scores of the positions of a pass, bytes.
_FOR_ANSWERS: Final = 1 << 30


def is_out_of_memory(error: BaseException) -> bool:
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

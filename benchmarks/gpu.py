"""What a GPU makes of tuning and serving, as ratios within one run and as a share of the chip's peak.

    python benchmarks/gpu.py --peak-tflops 989 --json gpu.json              # at most eight minutes on one GPU
    python benchmarks/gpu.py --sizes tiny --device cpu --rounds 1           # seconds, and no result

Backbones are of Llama's shape with random weights, written into a temporary folder; adapters and texts are random too,
because what is computed does not depend on them. On a GPU a time is that of the clock, from one synchronization to the
next, after one run that is not counted; on a processor it is processor time. The arms take turns in every round.

- `tuning`: a step of ours with reconstruction, and one without, against PEFT's prompt tuning with the Transformers
  Trainer on the same model, precision and number of records; tokens a second, and the share of `--peak-tflops` that the
  frozen model's products take: 4 products a weight and position, forward and back to the activations.
- `tenants`: 64 tenants, a short text each, in one batch of ours against a loop over PEFT's `set_adapter`.
- `decoding`: 64 texts with a prompt of their own in one batch of ours against `generate` of the model without adapters,
  and against the same batch of ours without adapters.
- `search`: the float32 product and its best row on the device, which is not exact, against our exact search on one core
  of the processor: the user's half has no torch.

No part is begun after `--seconds`, and one that runs a minute longer is cut off; these, and parts that the GPU has too
little memory for, are named under `left_out`. So all sizes come in one run, the largest last.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from results import machine, publish, spread
from serving_model import PROMPT, made_adapter, made_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from tuning_speed import privatized_file

from rapt.errors import UsageError
from rapt.local.nearest import NearestToken
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.placement import choose_device
from rapt.service.tuning.run import Run
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes, by the names of Llama's configuration, and what is asked of it."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tenants: int = 64
    steps: int = 10
    written: int = 64


SHAPES: Final = {
    "tiny": Shape(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, tenants=4, steps=2, written=4,
    ),
    "0.1": Shape(
        vocab_size=32_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        intermediate_size=2048,
    ),
    "1": Shape(
        vocab_size=128_256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192,
    ),
    "8": Shape(
        vocab_size=128_256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14_336,
    ),
}  # fmt: skip
# Rows and width of the tables that are searched: MiniLM's, Qwen3-0.6B's, Llama 3's.
TABLES: Final = ((30_522, 384), (151_936, 1024), (128_256, 4096))
TINY_TABLES: Final = ((500, 16),)


@dataclass(frozen=True)
class Clock:
    """Seconds of a piece of work."""

    device: torch.device

    def time(self, work: Callable[[], object]) -> float:
        """Return the clock's time after waiting for a GPU; on a processor, the time that this process used."""
        read = time.process_time if self.device.type == "cpu" else time.perf_counter
        self._wait()
        start = read()
        work()
        self._wait()
        return read() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(self, arms: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
        """Seconds of each arm in each round; each has run once before."""
        for work in arms.values():
            work()
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, work in arms.items():
                found[name].append(self.time(work))
        return found


def write_model(shape: Shape, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Path:
    """A folder in Hugging Face's layout, of words that mean nothing and random weights, drawn on the device."""
    folder.mkdir()
    words = {f"w{number}": number for number in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = LlamaConfig(
        **{name: getattr(shape, name) for name in (*names, "intermediate_size")},
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype=dtype,
    )
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as fast, round by round."""
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def measure_tuning(
    backbone: Backbone, folder: Path, shape: Shape, clock: Clock, *, rounds: int, peak: float | None
) -> dict[str, object]:
    """Steps of ours and of PEFT's."""
    size = min(32, 8 * shape.tenants)
    plain = TuningConfig(batch_size=size, prompt_length=PROMPT)
    sizes = {"records": 4 * size, "pool": min(500, shape.vocab_size // 4)}
    texts = privatized_file(backbone, plain=0, **sizes)
    runs = {
        "rapt": Run(
            backbone,
            privatized_file(backbone, plain=20, **sizes),
            validation=None,
            config=replace(plain, epochs=1000, reconstruction=ReconstructionConfig()),
            warn=print,
        ),
        "plain": Run(backbone, texts, validation=None, config=replace(plain, epochs=1000), warn=print),
    }
    steps = {name: run.make_steps() for name, run in runs.items()}

    def take(name: str) -> Callable[[], object]:
        return lambda: [next(steps[name]) for _ in range(shape.steps)]

    seconds = clock.compare({name: take(name) for name in runs}, rounds=rounds)
    seconds["peft"] = [
        time_peft(folder, texts.records, plain, shape, device=clock.device, dtype=backbone.dtype) for _ in range(rounds)
    ]
    tokens = shape.steps * size * texts.manifest.tokens / len(texts.records)
    weights = sum(parameter.numel() for parameter in backbone.sites.model.parameters())
    weights -= backbone.word_embeddings.numel()  # looked up, not multiplied
    positions = tokens + shape.steps * size * PROMPT
    found: dict[str, object] = {
        "rapt_over_peft": ratio(seconds["peft"], seconds["rapt"]),
        "plain_over_peft": ratio(seconds["peft"], seconds["plain"]),
        "tokens_per_second": {name: spread([tokens / one for one in each]) for name, each in seconds.items()},
    }
    if peak is not None:
        share = [4 * weights * positions / one / (peak * 1e12) for one in seconds["plain"]]
        found["share_of_peak_of_a_plain_step"] = spread(share)
    return found


def time_peft(
    folder: Path, records: tuple, config: TuningConfig, shape: Shape, *, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of as many steps of PEFT's prompt tuning with the Trainer, the first left out."""
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []
    gpu = device.type == "cuda"

    class StepClock(TrainerCallback):
        def on_step_end(self, *_args: object, **_rest: object) -> None:
            if gpu:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() if gpu else time.process_time())

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        padded = [[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in rows]
        real = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(real), "labels": labels}

    rows = [{"input_ids": list(record.token_ids), "labels": record.label} for record in records]
    # The Trainer prints a line of its own.
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=dtype)
        prompts = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=config.prompt_length)
        Trainer(
            model=get_peft_model(model, prompts),
            args=TrainingArguments(
                output_dir=out,
                per_device_train_batch_size=config.batch_size,
                max_steps=shape.steps + 1,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=not gpu,
                bf16=gpu and dtype == torch.bfloat16,
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[StepClock()],
        ).train()
    return times[-1] - times[0]


def measure_tenants(backbone: Backbone, folder: Path, shape: Shape, clock: Clock, *, rounds: int) -> dict[str, object]:
    """One batch of many tenants against a loop over `set_adapter`."""
    import peft

    generator = torch.Generator().manual_seed(2)
    rows = [
        ClassificationRow(adapter=on_device(made_adapter(backbone, generator), clock.device), token_ids=text)
        for text in made_texts(backbone, generator, count=shape.tenants, low=6, high=20)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = LlamaForCausalLM.from_pretrained(folder, dtype=backbone.dtype).model.to(clock.device).eval()
        config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=PROMPT)
        model = peft.get_peft_model(base, config, adapter_name="0")
        for number in range(1, len(rows)):
            model.add_adapter(str(number), config)
    model.eval()

    @torch.inference_mode()
    def loop() -> None:
        for number, row in enumerate(rows):
            model.set_adapter(str(number))
            ids = torch.tensor([row.token_ids], device=clock.device)
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            assert row.adapter is not None
            head = row.adapter.head_weight, row.adapter.head_bias
            torch.softmax(states[0, PROMPT:].float().mean(dim=0) @ head[0].T + head[1], dim=0).tolist()

    seconds = clock.compare({"loop": loop, "ours": lambda: classify(backbone, rows)}, rounds=rounds)
    tokens = sum(len(row.token_ids) for row in rows)
    return {
        "ours_over_set_adapter": ratio(seconds["loop"], seconds["ours"]),
        "tokens_per_second": spread([tokens / one for one in seconds["ours"]]),
    }


def on_device(adapter, device: torch.device):
    """An adapter of a prompt, where its backbone is."""
    prompt = adapter.tuned.prompt.to(device)
    head = adapter.head_weight.to(device), adapter.head_bias.to(device)
    return replace(adapter, tuned=replace(adapter.tuned, prompt=prompt), head_weight=head[0], head_bias=head[1])


def measure_decoding(backbone: Backbone, folder: Path, shape: Shape, clock: Clock, *, rounds: int) -> dict[str, object]:
    """A batch of texts, each with a prompt of its own, against `generate` without any."""
    generator = torch.Generator().manual_seed(3)
    texts = made_texts(backbone, generator, count=shape.tenants, low=16, high=16)
    rows = [
        GenerationRow(
            adapter=on_device(made_adapter(backbone, generator, task="generation"), clock.device),
            token_ids=text,
            most_tokens=shape.written,
            sampling=Sampling(temperature=0),
        )
        for text in texts
    ]
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=backbone.dtype).to(clock.device).eval()
    ids = torch.tensor(texts, device=clock.device)

    @torch.inference_mode()
    def theirs() -> None:
        whole.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=shape.written,
            min_new_tokens=shape.written,
        )

    def write(rows: list[GenerationRow]) -> None:
        batch = DecodingBatch(backbone)
        batch.join(rows)
        for _ in range(shape.written - 1):
            batch.step()

    bare = [replace(row, adapter=None) for row in rows]
    seconds = clock.compare(
        {"generate": theirs, "ours": lambda: write(rows), "ours without adapters": lambda: write(bare)}, rounds=rounds
    )
    tokens = shape.tenants * shape.written
    return {
        "ours_over_generate": ratio(seconds["generate"], seconds["ours"]),
        "ours_over_ours_without_adapters": ratio(seconds["ours without adapters"], seconds["ours"]),
        "tokens_per_second": {name: spread([tokens / one for one in each]) for name, each in seconds.items()},
    }


def measure_search(rows: int, width: int, clock: Clock, *, rounds: int) -> dict[str, object]:
    """The float32 product on the device, against the exact search on a core."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows, width), dtype=np.float32)
    vectors = table[rng.choice(rows, min(1024, rows))] + 0.1
    search = NearestToken(table, np.arange(rows))
    there, half = (
        torch.from_numpy(table).to(clock.device),
        torch.from_numpy((table**2).sum(axis=1) / 2).to(clock.device),
    )
    asked = torch.from_numpy(vectors).to(clock.device)

    def product() -> None:
        for part in asked.split(256):
            (part @ there.T - half).argmax(dim=1).tolist()

    seconds = clock.compare({"product": product}, rounds=rounds)
    few = vectors[:256]  # a core takes its time with the widest table
    core = Clock(torch.device("cpu")).compare({"exact": lambda: search.search(few)}, rounds=1)
    exact, product_at_best = core["exact"][0] / len(few), min(seconds["product"]) / len(vectors)
    return {
        "device_product_over_exact_search_on_a_core": exact / product_at_best,
        "tokens_per_second": {
            "product": spread([len(vectors) / one for one in seconds["product"]]),
            "exact": 1 / exact,
        },
    }


class TimeUp(Exception):
    """The time of the whole run is over."""


@contextmanager
def cut_off_after(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the block once so many seconds have passed."""

    def end(_signal: int, _frame: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["0.1", "1", "8"], help="billions of parameters")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="what the chip is said to reach in this precision")
    parser.add_argument("--seconds", type=float, default=400, help="no part is begun after so many")
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    began, device = time.monotonic(), choose_device(arguments.device)
    clock, dtype, rounds = Clock(device), getattr(torch, arguments.precision), arguments.rounds
    parts: dict[str, object] = {}
    left_out: list[str] = []

    def run(name: str, part: Callable[[], object]) -> None:
        if time.monotonic() - began > arguments.seconds:
            left_out.append(name)
            return
        try:
            found = part()
        except (TimeUp, torch.OutOfMemoryError, UsageError) as error:
            left_out.append(f"{name}: {type(error).__name__}")
        else:
            if found is not None:
                parts[name] = found

    def measure_size(size: str, folder: Path) -> None:
        shape = SHAPES[size]
        write_model(shape, folder, dtype=dtype, device=device)
        backbone = load_backbone(str(folder), precision=arguments.precision, device=arguments.device)
        of = (backbone, folder, shape, clock)
        run(f"tuning {size}", lambda: measure_tuning(*of, rounds=rounds, peak=arguments.peak_tflops))
        run(f"tenants {size}", lambda: measure_tenants(*of, rounds=rounds))
        run(f"decoding {size}", lambda: measure_decoding(*of, rounds=rounds))

    with tempfile.TemporaryDirectory() as place, cut_off_after(arguments.seconds + 60):
        # The searches are short, and need no model.
        for rows, width in TINY_TABLES if arguments.sizes == ["tiny"] else TABLES:
            run(f"search {rows} x {width}", lambda of=(rows, width): measure_search(*of, clock, rounds=rounds))
        for size in arguments.sizes:
            run(f"all of {size}", lambda size=size: measure_size(size, Path(place) / f"model-{size}"))
            load_backbone.cache_clear()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: these figures are no result"
    memory = torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None
    result = {"device": name, "precision": arguments.precision, "rounds": rounds, "most_gpu_memory_mib": memory}
    publish(result | {"machine": machine(), "parts": parts, "left_out": left_out}, file=arguments.json)


if __name__ == "__main__":
    main()

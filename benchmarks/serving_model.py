"""How fast many tenants are answered, as ratios within one run; no HTTP here, see `serving_http.py` for that.

    OMP_NUM_THREADS=1 python benchmarks/serving_model.py --rounds 7 --decoder smollm2

Times are processor time of the process on one thread; the arms take turns in every round, so that a busy machine slows
them alike. Ratios are medians over rounds, with the lowest and the highest. Adapters and texts are random: what is
computed does not depend on them. Prints one JSON object a part.

- `forward`: real tokens a second of our BERT over those of Hugging Face's `BertModel` on the same padded batches.
- `tenants`: 16 tenants with a short text each, one pass for all against one call per tenant.
- `peft`: 100 tenants in turn, as batches of 64, against a loop over PEFT's `set_adapter` on Hugging Face's model.
- `decode`: 16 texts written in one batch against one after the other, with a soft prompt each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.steering import Tuned
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.mechanism_setting import MechanismSetting

PROMPT = 10


def made_adapter(backbone: Backbone, generator: torch.Generator, *, task: str = "classification") -> Adapter:
    """A random soft prompt and head of two classes."""
    card = AdapterCard(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        kind=backbone.kind,
        method="prompt_tuning",
        task=task,
        pairs=False,
        labels=("no", "yes") if task == "classification" else (),
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 75.0}),
        plain_tokens=0,
        prompt_length=PROMPT,
        training={},
        metrics={},
        weights_sha256="",
        created_by="benchmark",
    )
    width = backbone.hidden_size
    classes = len(card.labels)
    return Adapter(
        tuned=Tuned(prompt=0.1 * torch.randn(PROMPT, width, generator=generator)),
        head_weight=torch.randn(classes, width, generator=generator),
        head_bias=torch.zeros(classes),
        card=card,
    )


def made_texts(
    backbone: Backbone, generator: torch.Generator, *, count: int, low: int, high: int
) -> list[tuple[int, ...]]:
    """Random eligible tokens, of lengths from `low` to `high`."""
    eligible = torch.from_numpy(backbone.bundle.eligible.copy())
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return [tuple(eligible[torch.randint(len(eligible), (n,), generator=generator)].tolist()) for n in lengths]


def ratio(slow: Callable[[], object], fast: Callable[[], object], *, rounds: int) -> dict[str, float]:
    """How many times the processor time of `fast` is that of `slow`; both are run once before."""
    slow(), fast()
    found = []
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(rounds):
        times = []
        for name, run in (("slow", slow), ("fast", fast)):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
            seconds[name].append(times[-1])
        found.append(times[0] / times[1])
    return {
        "ratio": statistics.median(found),
        "lowest": min(found),
        "highest": max(found),
        "slow_ms": 1000 * statistics.median(seconds["slow"]),
        "fast_ms": 1000 * statistics.median(seconds["fast"]),
        "rounds": rounds,
    }


def forward(backbone: Backbone, *, rounds: int) -> dict[str, object]:
    """Our forward pass against Hugging Face's."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for rows, low, high in ((1, 20, 20), (16, 12, 36), (64, 20, 60)):
        lengths = torch.randint(low, high + 1, (rows,), generator=generator)
        width = int(lengths.max())
        columns = torch.arange(width).expand(rows, width)
        inputs = backbone.embed(torch.randint(1000, 20_000, (rows, width), generator=generator))
        mask = (columns < lengths[:, None]).long()

        theirs = partial(backbone.encoder, inputs_embeds=inputs, attention_mask=mask, position_ids=columns)
        ours = partial(backbone.encode, inputs, attention_mask=mask, position_ids=columns)
        with torch.inference_mode():
            measured = ratio(theirs, ours, rounds=rounds)
            difference = ((theirs().last_hidden_state - ours()) * mask[:, :, None]).abs().max()
        found[f"{rows} rows of {low}-{high} tokens"] = measured | {
            "tokens_per_second": 1000 * int(lengths.sum()) / measured["fast_ms"],
            "largest_difference": float(difference),
        }
    return found


def tenants(backbone: Backbone, *, rounds: int) -> dict[str, float]:
    """One pass for 16 tenants against 16 calls."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        ClassificationRow(adapter=made_adapter(backbone, generator), token_ids=text)
        for text in made_texts(backbone, generator, count=16, low=6, high=20)
    ]
    return ratio(lambda: [classify(backbone, [row]) for row in rows], lambda: classify(backbone, rows), rounds=rounds)


def peft_loop(backbone: Backbone, *, rounds: int, count: int = 100) -> dict[str, float]:
    """A loop over PEFT's `set_adapter` against our batches; the same texts, as many prompts."""
    import peft
    from transformers import BertModel

    from rapt.public_models import find_model_folder
    from rapt.service.backbone.architectures import quiet

    generator = torch.Generator().manual_seed(2)
    rows = [
        ClassificationRow(adapter=made_adapter(backbone, generator), token_ids=text)
        for text in made_texts(backbone, generator, count=count, low=6, high=20)
    ]
    with quiet():
        base = BertModel.from_pretrained(
            str(find_model_folder(backbone.model)), add_pooling_layer=False, attn_implementation="sdpa"
        )
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=PROMPT)
    model = peft.get_peft_model(base.eval(), config, adapter_name="0")
    for number in range(1, count):
        model.add_adapter(str(number), config)
    model.eval()

    @torch.inference_mode()
    def loop() -> None:
        for number, row in enumerate(rows):
            model.set_adapter(str(number))
            ids = torch.tensor([[backbone.frame.start[0], *row.token_ids, backbone.frame.end[0]]])
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            assert row.adapter is not None
            logits = states[0, PROMPT + 1 : -1].mean(dim=0) @ row.adapter.head_weight.T + row.adapter.head_bias
            torch.softmax(logits, dim=0).tolist()

    return ratio(loop, lambda: classify(backbone, rows), rounds=rounds)


def decode(model: str, *, rounds: int, tokens: int = 16) -> dict[str, object]:
    """16 texts at once against one after the other."""
    backbone = load_backbone(model, precision="float32")
    generator = torch.Generator().manual_seed(3)
    rows = [
        GenerationRow(
            adapter=made_adapter(backbone, generator, task="generation"),
            token_ids=text,
            most_tokens=tokens,
            sampling=Sampling(temperature=0),
        )
        for text in made_texts(backbone, generator, count=16, low=8, high=24)
    ]

    def write(chosen: list[GenerationRow]) -> None:
        batch = DecodingBatch(backbone)
        batch.join(chosen)
        for _ in range(tokens - 1):
            batch.step()

    measured = ratio(lambda: [write([row]) for row in rows], lambda: write(rows), rounds=rounds)
    return measured | {"tokens_per_second": 1000 * 16 * tokens / measured["fast_ms"], "new_tokens": tokens}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--decoder", help="also measure decoding with this model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decoder-rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(arguments.model, precision="float32")
    parts: dict[str, Callable[[], object]] = {
        "tenants": lambda: tenants(backbone, rounds=arguments.rounds),
        "peft": lambda: peft_loop(backbone, rounds=arguments.rounds),
        "forward": lambda: forward(backbone, rounds=arguments.rounds),
    }
    if arguments.decoder:
        parts["decode"] = lambda: decode(arguments.decoder, rounds=arguments.decoder_rounds)
    for name in arguments.parts or parts:
        print(json.dumps({name: parts[name]()}, indent=2), flush=True)


if __name__ == "__main__":
    main()

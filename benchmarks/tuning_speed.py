"""What a tuning step costs: ratios within one run on one machine, because seconds say more of the machine than of us.

    python benchmarks/tuning_speed.py --rounds 3 --steps 8 --out docs/results/tuning_speed.json

Three ratios and a size, arms in turn within every round, medians over rounds. Seconds are the processor's, of one
thread by default, so that other work on the machine counts little.

1. RAPT over plain: seconds of a step with m plain tokens and the reconstruction head, over a step of plain prompt
   tuning on sequences of the same length (as many text tokens more). Bar: at most 1.15.
2. Ours over PEFT: text tokens a second of this loop, over those of PEFT's prompt tuning with the Transformers Trainer;
   same model, batch size, prompt length and records, each as it comes: ours in the precision that `auto` chooses and in
   float32, with length-bucketed batches; the Trainer with its defaults, which pad each batch of random records.
   Bar: at least 2.
3. Backbone over step: seconds of the frozen model's forward and backward alone, on the layouts of the same batches,
   over those of the whole step. Bar: at least 0.85.
4. Peak memory of each arm: the high-water mark of resident memory, reset before the arm, less what was resident then.

Records have random tokens and lengths like those of sentences: lognormal with the median and spread of SST-2's dev set
in word pieces (median 22, quartiles 14 and 30), cut at 64.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rapt.service.backbone.layout import embed_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.run import Run, list_batches
from rapt.service.tuning.tuner import ReconstructionConfig, TuningConfig
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, PlainTokens, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord

MEDIAN, SPREAD, LONGEST = 22, 0.55, 64


def privatized_file(backbone, *, records, plain, pool, more=0, seed=0):
    """Records of random tokens with lengths like sentences; `more` text tokens are added to each."""
    rng = np.random.default_rng(seed)
    eligible = backbone.bundle.eligible
    tokens = PlainTokens(count=plain, pool=tuple(eligible[:pool].tolist()), fixed=None) if plain else NO_PLAIN_TOKENS
    lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), SPREAD, size=records)), 3, LONGEST).astype(int)
    made = []
    for position, length in enumerate(lengths):
        draw = rng.choice(eligible, size=int(length) + more)
        own = tuple(int(token) for token in rng.choice(eligible[:pool], size=plain))
        made.append(
            PrivatizedRecord(
                token_ids=tuple(int(token) for token in draw),
                label=position % 2,
                privatized_plain_tokens=own,
                plain_tokens=own if plain else None,
            )
        )
    manifest = Manifest(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 60.0}),
        randomness=Randomness(source="benchmark", insecure_seed=seed),
        plain_tokens=tokens,
        labels=("no", "yes"),
        records=records,
        tokens=sum(len(record.token_ids) for record in made),
        records_sha256="",
        created_by="benchmark",
    )
    return PrivatizedFile(manifest=manifest, records=tuple(made))


class OurSteps:
    """Steps of a run of ours, counted in seconds and text tokens."""

    def __init__(self, backbone, file, config):
        """Stand before the first step."""
        self.backbone, self.config = backbone, config
        self.run = Run(backbone, file, validation=None, config=config, warn=print)
        self.steps = self.run.make_steps()
        self.records = file.records

    def measure(self, steps):
        """Seconds and text tokens of the next steps, and the positions of their batches."""
        batches, tokens, start = [], 0, time.process_time()
        for _ in range(steps):
            next(self.steps)
            epoch, place = divmod(self.run.step - 1, self.run.steps_per_epoch)
            lengths = [len(record.token_ids) for record in self.records]
            size, seed = self.config.batch_size, self.config.seed
            batches.append(list_batches(lengths, size=size, seed=seed, epoch=epoch)[place])
        seconds = time.process_time() - start
        tokens = sum(len(self.records[position].token_ids) for batch in batches for position in batch)
        return seconds, tokens, batches

    def backbone_alone(self, batches):
        """Seconds of the frozen model's forward and backward on the layouts of these batches."""
        seconds, length = 0.0, self.config.prompt_length
        prompt = torch.zeros(length, self.backbone.hidden_size)
        for batch in batches:
            chosen = [self.records[position] for position in batch]
            plain = self.config.reconstruction is not None
            layout = lay_out(
                self.backbone,
                prompt_lengths=[length] * len(chosen),
                privatized_plain_tokens=[record.privatized_plain_tokens if plain else () for record in chosen],
                texts=[record.token_ids for record in chosen],
            )
            vectors = embed_with_prompts(self.backbone, layout, prompt.repeat(len(chosen), 1)).requires_grad_()
            start = time.process_time()
            states = self.backbone.encode(
                vectors, attention_mask=layout.attention_mask, position_ids=layout.position_ids
            )
            states.backward(torch.ones_like(states))
            seconds += time.process_time() - start
        return seconds


class PeftSteps:
    """Steps of PEFT's prompt tuning with the Transformers Trainer."""

    def __init__(self, folder, file, config):
        """Load the model of a folder for two classes."""
        from peft import PromptTuningConfig, TaskType, get_peft_model
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        self.model = get_peft_model(
            model, PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=config.prompt_length)
        )
        self.config, self.file = config, file

    def measure(self, steps):
        """Seconds and text tokens of `steps` steps after the first, which warms up."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        times, counted = [], []

        class Clock(TrainerCallback):
            def on_step_end(self, args, state, control, **rest):
                times.append(time.process_time())

        def collate(rows):
            width = max(len(row["input_ids"]) for row in rows)
            counted.append(sum(len(row["input_ids"]) - 2 for row in rows))  # text alone, as of ours
            return {
                "input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]),
                "attention_mask": torch.tensor(
                    [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
                ),
                "labels": torch.tensor([row["labels"] for row in rows]),
            }

        rows = [{"input_ids": [101, *record.token_ids, 102], "labels": record.label} for record in self.file.records]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                model=self.model,
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=self.config.batch_size,
                    max_steps=steps + 1,
                    learning_rate=self.config.learning_rate,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    use_cpu=True,
                    remove_unused_columns=False,
                ),
                train_dataset=rows,
                data_collator=collate,
                callbacks=[Clock()],
            )
            trainer.train()
        return times[-1] - times[0], sum(counted[1 : steps + 1])


def peak_memory(work):
    """What `work` gives, and how much more memory was resident during it than before, in MiB; Linux only."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return work(), 0
    before = resident("VmRSS")
    answer = work()
    return answer, resident("VmHWM") - before


def resident(name):
    """A figure of the process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024


def main():
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each arm a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--plain-tokens", type=int, default=20)
    parser.add_argument("--pool", type=int, default=500)
    parser.add_argument("--without-peft", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from rapt.public_models import find_model_folder

    backbone = load_backbone(options.model, device="cpu")
    exact = load_backbone(options.model, precision="float32", device="cpu")
    sizes = {"records": 64 * options.batch_size, "pool": options.pool}
    m = options.plain_tokens
    plain_config = TuningConfig(batch_size=options.batch_size)
    rapt_config = replace(plain_config, reconstruction=ReconstructionConfig())
    text = privatized_file(backbone, plain=0, **sizes)
    arms = {
        "rapt": OurSteps(backbone, privatized_file(backbone, plain=m, **sizes), rapt_config),
        "plain, as long": OurSteps(backbone, privatized_file(backbone, plain=0, more=m, **sizes), plain_config),
        "plain": OurSteps(backbone, text, plain_config),
    }
    if exact is not backbone and exact.dtype != backbone.dtype:
        arms["plain, float32"] = OurSteps(exact, text, plain_config)
    peft = None if options.without_peft else PeftSteps(str(find_model_folder(options.model)), text, plain_config)
    seconds = {name: [] for name in [*arms, "backbone of rapt", "backbone of plain", "peft"]}
    tokens, memory = {}, {}
    for arm in arms.values():
        arm.measure(1)
    for _ in range(options.rounds):
        for name, arm in arms.items():
            (took, count, batches), most = peak_memory(lambda arm=arm: arm.measure(options.steps))
            seconds[name].append(took)
            tokens.setdefault(name, []).append(count / took)
            memory[name] = max(most, memory.get(name, 0))
            if name in ("rapt", "plain"):
                seconds[f"backbone of {name}"].append(arm.backbone_alone(batches))
        if peft is not None:
            (took, count), most = peak_memory(lambda: peft.measure(options.steps))
            seconds["peft"].append(took)
            tokens.setdefault("peft", []).append(count / took)
            memory["peft"] = max(most, memory.get("peft", 0))

    def ratio(values, others):
        each = [value / other for value, other in zip(values, others, strict=True)]
        return {"median": round(statistics.median(each), 3), "rounds": [round(value, 3) for value in each]}

    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": options.threads},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "model": options.model,
        "precision": str(backbone.dtype).removeprefix("torch."),
        "batch_size": options.batch_size,
        "prompt_length": plain_config.prompt_length,
        "plain_tokens": m,
        "pool": options.pool,
        "steps_a_round": options.steps,
        "rapt_over_plain_of_the_same_length": ratio(seconds["rapt"], seconds["plain, as long"]),
        "backbone_over_step_of_rapt": ratio(seconds["backbone of rapt"], seconds["rapt"]),
        "backbone_over_step_of_plain": ratio(seconds["backbone of plain"], seconds["plain"]),
        "text_tokens_a_second": {name: round(statistics.median(values)) for name, values in tokens.items()},
        "peak_mib_over_what_was_resident_before": {name: round(value) for name, value in memory.items()},
    }
    if peft is not None:
        result["ours_over_peft"] = ratio(tokens["plain"], tokens["peft"])
        if "plain, float32" in tokens:
            result["ours_in_float32_over_peft"] = ratio(tokens["plain, float32"], tokens["peft"])
    written = json.dumps(result, indent=2)
    print(written)
    if options.out:
        options.out.write_text(written + "\n")


if __name__ == "__main__":
    main()

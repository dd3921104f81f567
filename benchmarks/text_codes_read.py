"""What a reader is worth: heads on what a backbone makes of private codes, beside heads on the codes themselves.

    rapt reader TEXT/public.csv --model minilm --codes minilm-codes --out minilm-reads
    python benchmarks/text_codes_read.py --text TEXT --cache STATES --reader minilm-reads --encoder minilm --out FILE

The contributors of `text_codes.py`, their codewords, seeds and heads: one arm reads the codeword, the other the state
that the backbone has behind the reader, turned to its first principal directions over the codebook. Both choose their
ridge by cross-validation of the private codes. *At home* both see the clear code, *privately* a codeword at the same ε.
`--prompt` tunes a soft prompt of four vectors through `rapt.service` as well, on so many contributors.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from text_codes import interval, margins, read, states_of, tune

from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.layout import encode_with_prompts
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuner import tune as tune_adapter
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.code_bundle import project_states
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest

DIRECTIONS = 64
AT_ONCE = 64


@torch.inference_mode()
def read_points(backbone, points, epsilon):
    """The vector that a head reads of codewords or clear codes, (n, k) to (n, h), as if released at an ε."""
    reader = replace(backbone.reader, points=torch.from_numpy(points.astype(np.float32)))
    backbone = replace(backbone, reader=reader)
    task, found = TASKS["classification"], []
    for start in range(0, len(points), AT_ONCE):
        ids = range(start, min(start + AT_ONCE, len(points)))
        rows = [PrivatizedRecord(token_ids=backbone.reader.spell((one,), epsilon=epsilon)) for one in ids]
        layout = task.lay_out(backbone, rows, prompt_lengths=[0] * len(rows), plain=False)
        found.append(task.vectors(backbone, encode_with_prompts(backbone, layout, None), layout).numpy())
    return np.concatenate(found).astype(np.float64)


def reduce(states, others):
    """States and others turned to the principal directions of the first, scaled; the share of variance that is left."""
    center = states.mean(axis=0)
    _, sizes, axes = np.linalg.svd(states - center, full_matrices=False)
    kept, rest = ((part - center) @ axes[:DIRECTIONS].T for part in (states, others))
    scale = np.sqrt((kept**2).sum(axis=1).mean())
    return kept / scale, rest / scale, float((sizes[:DIRECTIONS] ** 2).sum() / (sizes**2).sum())


def prompt_answers(backbone, ids, labels, mechanism, codes, private, *, seed):
    """Classes that a tuned soft prompt gives to clear codes, and to codewords."""
    records = tuple(
        PrivatizedRecord(token_ids=(int(one),), label=int(label)) for one, label in zip(ids, labels, strict=True)
    )
    manifest = Manifest(
        model=backbone.model,
        vocabulary_hash=backbone.code.hash,
        mechanism=mechanism.setting,
        randomness=Randomness(source="a benchmark", insecure_seed=seed),
        plain_tokens=NO_PLAIN_TOKENS,
        labels=("negative", "positive"),
        records=0,
        tokens=0,
        records_sha256="",
        created_by="benchmarks/text_codes_read.py",
    )
    file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
    config = replace(make_default_config("prompt_tuning"), prompt_length=4, epochs=4, seed=seed)
    adapter = tune_adapter(backbone, file, config=config)
    found = []
    for points, places in ((codes, range(len(codes))), (backbone.code.codewords[0], private)):
        reader = replace(backbone.reader, points=torch.from_numpy(points.astype(np.float32)))
        rows = [ClassificationRow(adapter=adapter, token_ids=(int(one),)) for one in places]
        found.append(np.array(classify(replace(backbone, reader=reader), rows)).argmax(axis=1))
    return found


def main():
    """Read the command line, write a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--text", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--backbone")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--epsilon", type=float, action="append")
    parser.add_argument("--contributors", type=int, action="append")
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    encoder = read_encoder(options.encoder)
    backbone = load_backbone(options.reader, behind=options.backbone)
    code = backbone.code
    words = code.codewords[0].astype(np.float64)

    def load(name):
        texts, labels = read(options.text / name)
        return project_states(states_of(encoder, texts, options.cache), code), labels

    (codes, labels), (asked, right) = load("train.csv"), load("dev.csv")
    for epsilon in options.epsilon or (1.0, 2.0, 4.0, 8.0):
        mechanism = make_subset(code, epsilon=epsilon)
        states, at_home, kept = reduce(*(read_points(backbone, part, epsilon) for part in (words, asked)))
        for contributors in options.contributors or (4_000, 400, 100):
            found = {}
            for seed in range(options.seeds):
                rng = np.random.default_rng(seed)
                chosen = rng.permutation(len(codes))[:contributors]
                ids = mechanism.privatize(codes[chosen], rng=rng)[:, 0]
                private = mechanism.privatize(asked, rng=rng)[:, 0]
                head = tune(words[ids], labels[chosen])
                behind = tune(states[ids], labels[chosen])
                said = {
                    "head": [margins(head, asked) > 0, margins(head, words[private]) > 0],
                    "reader": [margins(behind, at_home) > 0, margins(behind, states[private]) > 0],
                }
                if contributors == options.prompt:
                    said["prompt"] = prompt_answers(backbone, ids, labels[chosen], mechanism, asked, private, seed=seed)
                for arm, both in said.items():
                    found.setdefault(arm, []).append([one == (right > 0) for one in both])
            cell = {
                "encoder": encoder.model,
                "backbone": backbone.reader and json.loads((Path(options.reader) / "reader.json").read_text())["model"],
                "epsilon": epsilon,
                "contributors": contributors,
                "dimensions": len(code.directions),
                "n": len(right),
                "seeds": options.seeds,
                "variance_kept": round(kept, 4),
            }
            for arm, runs in found.items():
                for place, way in enumerate(("at_home", "privately")):
                    part = np.array([run[place] for run in runs])
                    cell[f"{arm}_{way}"] = round(float(part.mean()), 4)
                    cell[f"{arm}_{way}_interval"] = round(interval(part), 4)
            print(json.dumps(cell), flush=True)
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()

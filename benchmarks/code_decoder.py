"""What a language model reads of codes of real sentences: SmolLM2 conditioned on a codeword, beside the linear reader.

    python benchmarks/code_decoder.py --text TEXT --out code_decoder.jsonl --epsilon 4

Sentences of SST-2's `train.csv` are judged; readers learn from `public.csv`, whose codes they draw themselves. Both
name five tokens of each sentence (`rapt.audit.codes`). *Blind* is the share without the file, *bound* what no reader
exceeds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from task_codes import read

from rapt.audit.codes.decoder import write_words
from rapt.audit.codes.readers import Lesson, count_words, judge_words, read_words, see_codes
from rapt.local.codes.code_privatizer import read_code
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.wire.code_bundle import project_states

RELEASES = 8


def main():
    """Read the command line, write a line a reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--text", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--codes", default="minilm-codes")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--learned", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, code = np.random.default_rng(options.seed), read_code(options.codes)
    encoder, mechanism = read_encoder(code.model), make_subset(code, epsilon=options.epsilon)
    asked, held = (
        read(options.text / "train.csv", options.judged)[0],
        read(options.text / "public.csv", options.learned)[0],
    )

    def release(codes):
        return see_codes(mechanism, mechanism.privatize(codes, rng=rng))

    own, theirs = (project_states(encoder.encode(texts), code) for texts in (held, asked))
    lesson = Lesson(learned=tuple(release(own) for _ in range(RELEASES)), asked=release(theirs))
    words = count_words(encoder.vocabulary.encode(held), encoder.vocabulary.encode(asked))
    start = time.perf_counter()
    linear = read_words(lesson, words, reader="linear", epsilon=options.epsilon, seed=options.seed)
    with torch.autocast("cpu", torch.bfloat16):
        scores = write_words(
            lesson,
            words,
            held,
            model=options.model,
            vocabulary=encoder.vocabulary,
            seed=options.seed,
            steps=options.steps,
            samples=options.samples,
            on_progress=lambda share: print(f"{share:.2f} after {time.perf_counter() - start:.0f} s", flush=True),
        )
    decoder = judge_words(words, scores, reader=f"language model {options.model}", epsilon=options.epsilon)
    for found in (linear, decoder):
        cell = {
            "codes": options.codes,
            "epsilon": options.epsilon,
            "learned": len(held),
            "steps": options.steps,
            "samples": options.samples,
            "seed": options.seed,
            **asdict(found),
        }
        print(json.dumps(cell), flush=True)
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()

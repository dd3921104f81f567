"""Tokens at η beside codes at ε on tasks of many kinds: the same contributors, the same judged texts, one encoder.

    python benchmarks/public_tasks.py ... --out TASKS
    python benchmarks/task_tokens.py --tasks TASKS --cache STATES --out task_tokens.jsonl --eta 75 --epsilon 4

Both arms tune a logistic head (`task_codes.tune`) on what `--contributors` texts released, cut to `--tokens` tokens.
*Tokens*: each through `laplace` at η, read by MiniLM (mean state), asked privately at the same η, and at home in clear.
*Codes*: `task_codes` with the map of the task's public text, asked at home and privately. Success of attacks: *stand*,
the share of tokens that left as they were, which is what the simplest attack reads of tokens; *linked*, how often the
released tokens name their text among 1,000 by the words they share, beside the bound of a code. The difference is that
of the better of the two ways of asking tokens, paired over texts and seeds. One JSON line for each task.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from task_codes import read, right_answers, tune
from text_codes import interval, states_of
from transformers import AutoModel

from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.text_statement import bound_guess
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import find_model_folder

TASKS = {"tweets": 8, "friends": 8, "r8": 32, "newsgroups": 32}  # and the dimensions of their codes
AMONG, START, END, AT_ONCE = 1000, 101, 102, 50


@torch.no_grad()
def read_states(model, contents):
    """Mean states of token sequences, (n, h)."""
    found, order = np.empty((len(contents), model.config.hidden_size)), np.argsort([len(one) for one in contents])
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        rows = [[START, *contents[place], END] for place in places]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        found[places] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).float().numpy()
    return found


def linked(true, released):
    """Share of released texts that share most words with their own text, among `AMONG` of them."""
    bags = [set(one) for one in true[:AMONG]]
    scores = np.array([[len(set(one) & bag) / max(len(bag), 1) ** 0.5 for bag in bags] for one in released[:200]])
    best = scores == scores.max(axis=1, keepdims=True)
    return float((best[np.arange(len(best)), np.arange(len(best))] / best.sum(axis=1)).mean())


def main():
    """Read the command line, write a line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tasks", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--epsilon", type=float, default=4.0)
    parser.add_argument("--contributors", type=int, default=1_000)
    parser.add_argument("--judged", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--task", action="append")
    options = parser.parse_args()
    encoder, vocabulary = read_encoder("minilm"), load_vocabulary("minilm")
    model = AutoModel.from_pretrained(find_model_folder("minilm")).eval()
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=options.eta)
    for task in options.task or TASKS:
        folder = options.tasks / task
        texts, names, states = {}, {}, {}
        for part in ("train", "test"):
            texts[part], names[part] = read(folder / f"{part}.csv")
            states[part] = states_of(encoder, texts[part], options.cache)
        public = states_of(encoder, read(folder / "public.csv")[0], options.cache)
        classes = sorted(set(names["train"]))
        labels = {part: np.array([classes.index(one) for one in found]) for part, found in names.items()}
        bundle = make_codebook(encoder, PublicStates(texts=public), dimensions=TASKS[task])
        rows = np.random.default_rng(1).permutation(len(labels["train"]))[: options.contributors]
        asked = np.random.default_rng(2).permutation(len(labels["test"]))[: options.judged]
        own = [ids[: options.tokens] for ids in vocabulary.encode([texts["train"][row] for row in rows])]
        queries = [ids[: options.tokens] for ids in vocabulary.encode([texts["test"][row] for row in asked])]
        truth, stand, clear = labels["test"][asked], [], read_states(model, queries)
        right = {name: [] for name in ("tokens_privately", "tokens_at_home", "codes_at_home", "codes_privately")}
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)

            def release(contents, rng=rng):
                drawn = mechanism.privatize(np.concatenate(contents).astype(np.int64), rng=rng)
                return np.split(drawn, np.cumsum([len(one) for one in contents])[:-1])

            given, sent = release(own), release(queries)
            stand.append(np.mean(np.concatenate(given) == np.concatenate(own)))
            head = tune(read_states(model, given), labels["train"][rows], np.eye(len(classes)))
            for name, inputs in (("tokens_privately", read_states(model, sent)), ("tokens_at_home", clear)):
                right[name].append((inputs @ head[:-1] + head[-1]).argmax(axis=1) == truth)
            found, _ = right_answers(
                bundle,
                states["train"][rows],
                labels["train"][rows],
                states["test"][asked],
                truth,
                SimpleNamespace(contributors=options.contributors, center=False, label_epsilon=0.0),
                epsilon=options.epsilon,
                rng=rng,
                classes=len(classes),
            )
            right["codes_at_home"].append(found[0])
            right["codes_privately"].append(found[2])
        scored = {name: np.array(item, dtype=float) for name, item in right.items()}
        better = max(("tokens_privately", "tokens_at_home"), key=lambda name: scored[name].mean())
        cell = {
            "task": task,
            "model": "minilm",
            "eta": options.eta,
            "epsilon": options.epsilon,
            "contributors": len(rows),
            "n": len(truth),
            "tokens": options.tokens,
            "seeds": options.seeds,
            "blind": round(float(np.bincount(truth).max() / len(truth)), 4),
            "stand": round(float(np.mean(stand)), 4),
            "linked": round(linked(own, given), 4),
            "bound_of_a_code": round(bound_guess(options.epsilon, among=AMONG), 4),
        }
        for name, item in scored.items():
            cell |= {name: round(float(item.mean()), 4), f"{name}_interval": round(interval(item), 4)}
        apart = scored["codes_at_home"] - scored[better]
        cell |= {"against": better, "difference": round(float(apart.mean()), 4), "difference_interval": interval(apart)}
        print(json.dumps(cell), flush=True)
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()

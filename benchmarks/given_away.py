r"""What tokens at η and codes at ε give away, in one picture: is a text recognized among 1,000, are its words read?

    rapt compare TEXT/train.csv --evaluation TEXT/dev.csv --codes minilm-codes --epsilon 2 ... --out COMPARISON
    python benchmarks/given_away.py link --text TEXT/train.csv --eta 50 --eta 75 --out given_away.jsonl
    python benchmarks/given_away.py draw --tokens given_away.jsonl --words docs/results/attacks_sst2.jsonl \
      --codes COMPARISON/results.jsonl --out docs/images/given_away.svg

`link` privatizes sentences at each η, and names each among 1,000 in clear by the exact channel, as `rapt compare` does.
`draw` puts both units over one axis, η of a token and ε of a text. They are two promises: only heights compare.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from attacks_sst2 import privatized

from rapt.audit.truth import match_truth
from rapt.audit.view import adversary_view
from rapt.compare.bench import link_among
from rapt.drawing import Figure, Line, draw_picture
from rapt.local.vocabulary import load_vocabulary

CANDIDATES = 1_000


def link(options):
    """Append a line for each η."""
    vocabulary = load_vocabulary(options.model)
    with options.text.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][:CANDIDATES]
    contents = vocabulary.encode(texts)
    attacked = contents[: options.sentences]
    for eta in options.eta:
        # The recognition reads no labels.
        labels = [0] * len(attacked)
        file = privatized(vocabulary, attacked, labels, mechanism="laplace", eta=eta, seed=options.seed)
        view = adversary_view(file, vocabulary.bundle)
        found = link_among(view, match_truth(view, attacked), [np.array(ids, dtype=np.int64) for ids in contents])
        line = {"eta": eta, "model": options.model, "sentences": len(attacked), "seed": options.seed, **found}
        print(json.dumps(line), flush=True)
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def lines_of(path):
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(options):
    """Write the picture."""
    tokens = sorted(lines_of(options.tokens), key=lambda line: line["eta"])
    codes = [line for line in lines_of(options.codes) if line["kind"] == "attack"]
    codes.sort(key=lambda line: line["epsilon"])
    words = []
    for line in sorted(lines_of(options.words), key=lambda line: line["eta"]):
        scores = [result["score"]["all_tokens"] for result in line["audit"]["results"]]
        best = max(scores, key=lambda score: score["first"]["value"])
        words.append((line["eta"], *(best["first"][name] - best["chance"] for name in ("value", "low", "high"))))
    read = [(line["epsilon"], *(line[name] - line["blind"] for name in ("recovered", "low", "high"))) for line in codes]

    def curve(name, rows, style):
        return Line(
            name=name,
            points=tuple((at, 100 * value) for at, value, _, _ in rows),
            ends=tuple((100 * low, 100 * high) for _, _, low, high in rows),
            style=style,
        )

    def blind(name, rows):
        return Line(name=name, points=tuple((at, 100 * value) for at, value in rows), style="fourth dashed")

    def linked(lines, unit):
        return [(line[unit], line["linked"], line["linked_low"], line["linked_high"]) for line in lines]

    ends = (codes[0]["epsilon"], max(line["eta"] for line in tokens + [{"eta": row[0]} for row in words]))
    recognized = Figure(
        title="recognized",
        across="",
        up="recognized among 1,000, %",
        # The blind guess goes from end to end: both panels stand over the axis of the first.
        lines=(
            curve("codes", linked(codes, "epsilon"), "first"),
            curve("tokens", linked(tokens, "eta"), "second"),
            blind("blind guess", [(end, 1 / CANDIDATES) for end in ends]),
        ),
        top=100.0,
    )
    below = Figure(
        title="words",
        across="codes: ε of a whole text, nats · tokens: η of each token, 1/distance",
        up="words, points beyond blind",
        lines=(curve("codes", read, "first"), curve("tokens", words, "second")),
        top=100.0,
    )
    picture = draw_picture(
        [recognized, below],
        title="What codes and tokens give away",
        subtitle="SST-2, MiniLM; words: five of each text for codes, all for tokens, less what a blind guess has",
        description="Above, how often a text is recognized among 1,000: codes stay low, tokens reach nearly all. "
        "Below, words read beyond the blind guess: none from codes, nearly all from tokens at large η.",
    )
    options.out.write_text(picture, encoding="utf-8")


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("link")
    first.add_argument("--text", type=Path, required=True)
    first.add_argument("--model", default="minilm")
    first.add_argument("--eta", type=float, action="append", required=True)
    first.add_argument("--sentences", type=int, default=100)
    first.add_argument("--seed", type=int, default=0)
    first.add_argument("--out", type=Path, required=True)
    first.set_defaults(run=link)
    second = commands.add_parser("draw")
    for name in ("--tokens", "--words", "--codes", "--out"):
        second.add_argument(name, type=Path, required=True)
    second.set_defaults(run=draw)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

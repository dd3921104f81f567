"""Two pictures of what is promised: of two words at η by their distance, and of two texts by the words that differ.

    python benchmarks/promises.py --out docs/images

Every value is a bound for any attack, rounded up: how often somebody who sees what left, and has to say which of two
equally likely inputs it came from, is right at most. A coin is right in 50 % of cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rapt.drawing import Figure, Line, draw_picture
from rapt.local.codes.text_statement import bound_guess
from rapt.local.privacy_loss import compose, laplace_loss
from rapt.local.vocabulary import load_vocabulary

STYLES = ("first", "second", "third", "fourth")
PAIRS = (("good", "great"), ("soup", "bread"))
# Median distance of a token of the default table to its nearest neighbour: docs/guarantee.md.
NEAREST = 0.993
WORDS = (1, 2, 3, 5, 8, 12, 20)


def right_guess(eta: float, distance: float, *, dimension: int, words: int = 1) -> float:
    """The most that a choice between two inputs can be right, in %."""
    loss = laplace_loss(eta=eta, distance=distance, dimension=dimension)
    return 50 * (1 + compose([(loss, words)]).delta(0.0))


def draw_words(dimension: int, marks: str) -> str:
    """Two words at η: what tells them apart is their distance."""
    lines = []
    for eta, style in zip((10, 25, 50, 75), STYLES, strict=True):
        points = [(float(x), right_guess(eta, x, dimension=dimension)) for x in np.geomspace(0.2, 2.8, 16)]
        lines.append(Line(name=f"η = {eta}", points=tuple(points), style=style))
    figure = Figure(
        title="Which of two words was it?", across=f"distance of the two words in the embedding table ({marks})",
        up="right at most, %", lines=tuple(lines), level=50.0, step=10,
    )  # fmt: skip
    said = "Near words are hard to tell apart, far words are easy, and a larger η makes all of them easier."
    return draw_picture([figure], title="Tokens at η: which of two words was it?", subtitle=said, description=said)


def draw_texts(dimension: int) -> str:
    """Two texts: at η each word that differs adds up, under one ε nothing does."""
    tokens = [
        Line(
            name=f"tokens, η = {eta}",
            points=tuple((float(n), right_guess(eta, NEAREST, dimension=dimension, words=n)) for n in WORDS),
            style=f"{style} dashed",
        )
        for eta, style in ((50, "second"), (25, "third"))
    ]
    codes = [
        Line(
            name=f"code, ε = {epsilon}",
            points=tuple((float(n), 100 * bound_guess(epsilon, among=2)) for n in WORDS),
            style=style,
        )
        for epsilon, style in ((4, "first"), (1, "fourth"))
    ]
    figure = Figure(
        title="Which of two texts was it?", across="words in which the two texts differ, each its nearest neighbour",
        up="right at most, %", lines=(*tokens, *codes), level=50.0, step=10,
    )  # fmt: skip
    said = "At η each word that differs adds up. Under one ε it does not matter how much differs."
    return draw_picture([figure], title="Whole texts: which of two texts was it?", subtitle=said, description=said)


def main():
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    vocabulary = load_vocabulary(options.model)
    rows = vocabulary.bundle.embeddings
    ids = {word: vocabulary.encode([word])[0][0] for pair in PAIRS for word in pair}
    far = {pair: np.linalg.norm(rows[ids[pair[0]]] - rows[ids[pair[1]]]) for pair in PAIRS}
    marks = ", ".join(f"{one} and {other} {distance:.2f}" for (one, other), distance in far.items())
    (options.out / "two_words.svg").write_text(draw_words(rows.shape[1], marks), encoding="utf-8")
    (options.out / "two_texts.svg").write_text(draw_texts(rows.shape[1]), encoding="utf-8")


if __name__ == "__main__":
    main()

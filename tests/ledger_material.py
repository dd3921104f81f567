"""Texts, a setting and releases for the tests of the ledger."""

import numpy as np

from rapt.local.ledger_file import Cap, Caps
from rapt.local.ledger_releases import privatize_through
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary, toy_word

# 400 words on a ring that is small beside the noise: no word is drawn in place of another more often than once in 240
# times, so two draws of n words are equal with probability (1/240)^n at most. On a line the ends would draw the rest.
TURNS = 2 * np.pi * np.arange(400) / 400
VOCABULARY = toy_vocabulary(np.column_stack([np.cos(TURNS), np.sin(TURNS)]) / 10)
ETA = 5.0
TEXTS = [" ".join(toy_word((7 * i + j) % 400) for j in range(5 + i)) for i in range(6)]


def privatizer(*, eta=ETA, plain=NO_PLAIN_TOKENS, truncate_to=None):
    return Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=eta), plain, truncate_to)


def through(
    ledger, texts=TEXTS, *, made=None, labels=None, response=None, stream=None, first=0, redraw=False, **others
):
    """The record of each text, through a ledger, with fresh randomness."""
    made, stream = made or privatizer(), stream or secure_stream()
    names = None if labels is None else tuple("abc"[: response.classes if response else 2])
    manifest = made.manifest(labels=names, randomness=stream.provenance, pairs="second" in others)
    chunk = Chunk(first, list(texts), labels, others)
    return privatize_through(ledger, chunk, ChunkSetting(made, response, manifest), stream=stream, redraw=redraw)


def released(ledger, texts=TEXTS, **arguments):
    """Token ids of each text, through a ledger."""
    return [record.token_ids for record in through(ledger, texts, **arguments)]


def capped(**metric):
    return Caps(metric=Cap(**metric))

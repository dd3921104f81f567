"""A T5 writes with a cache what it would write by reading everything again for each word."""

import pytest
import torch

from rapt.errors import UsageError
from rapt.service.model.decoding import GenerationRow
from rapt.service.model.layout import encode_with_prompts, lay_out
from rapt.service.model.sampling import Sampling
from rapt.service.model.t5_decoding import write_texts

GREEDY = Sampling(temperature=0)
TEXTS = [(30, 31, 32, 33, 34), (40,), (45, 46)]


def rows_of(**changes):
    return [GenerationRow(token_ids=text, **({"most_tokens": 6, "sampling": GREEDY} | changes)) for text in TEXTS]


def ids_of(written):
    return [[choice.token_id for choice in row] for row in written]


def read_again(backbone, text, *, most):
    """The naive twin: greedy, no cache, one row."""
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[text])
    states = encode_with_prompts(backbone, layout, None)
    words = [*backbone.frame.decoder_start]
    while len(words) <= most:
        decoded = backbone.decode(torch.tensor([words]), encoder_states=states, encoder_mask=layout.attention_mask)
        best = int(backbone.word_logits(decoded[0, -1]).argmax())
        if best == backbone.frame.eos_id:
            break
        words.append(best)
    return words[1:]


def test_a_mixed_batch_with_a_cache_writes_what_each_row_writes_alone_without(tiny):
    backbone = tiny("t5")
    together = ids_of(write_texts(backbone, rows_of()))
    assert together == [read_again(backbone, text, most=6) for text in TEXTS]
    assert any(together)


def test_a_row_draws_the_same_whoever_shares_its_batch(tiny):
    backbone, sampling = tiny("t5"), Sampling(temperature=1.0, seed=11)
    rows = rows_of(sampling=sampling)
    alone = [ids_of(write_texts(backbone, [row]))[0] for row in rows]
    assert ids_of(write_texts(backbone, rows)) == alone
    other = ids_of(write_texts(backbone, rows_of(sampling=Sampling(temperature=1.0, seed=12))))
    assert other != alone


def test_it_writes_no_more_than_was_asked_for(tiny):
    assert all(len(row) <= 2 for row in ids_of(write_texts(tiny("t5"), rows_of(most_tokens=2))))
    assert ids_of(write_texts(tiny("t5"), rows_of(most_tokens=0))) == [[], [], []]


def test_what_cannot_be_written_is_refused(tiny):
    with pytest.raises(UsageError, match="by an encoder-decoder, got"):
        write_texts(tiny("llama"), rows_of())
    with pytest.raises(UsageError, match="record 0 must have at least one token"):
        write_texts(tiny("t5"), [GenerationRow(token_ids=(), most_tokens=1)])
    with pytest.raises(UsageError, match="an answer must fit into 512 positions"):
        write_texts(tiny("t5"), rows_of(most_tokens=513))

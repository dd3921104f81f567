"""What is an encoder-decoder's own: a text is read once, an answer has positions of its own, and none is too late."""

import pytest
import torch

from closeness import assert_close
from rapt.errors import UsageError
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation_row import GenerationRow, check_generation
from rapt.service.answers.sampling import Sampling

GREEDY = Sampling(temperature=0)


def row(*ids, most=6):
    return GenerationRow(token_ids=ids, most_tokens=most, sampling=GREEDY)


def likelihoods(choices):
    return [choice.logprob for choice in choices]


def test_a_text_is_read_once_however_long_the_answer(tiny):
    backbone = tiny("t5")
    read = []
    hook = backbone.encoder.register_forward_hook(lambda *_: read.append(1))
    batch = DecodingBatch(backbone)
    try:
        batch.join([row(30, 31), row(40)])
        for _ in range(5):
            batch.step()
    finally:
        hook.remove()
    assert len(read) == 1


def test_an_answer_may_be_as_long_as_a_text_beside_it_and_no_longer(tiny):
    backbone = tiny("t5")
    most = backbone.max_positions
    longest = row(*[30] * (most - len(backbone.frame.end)), most=most)
    check_generation(backbone, longest, position=0)
    with pytest.raises(UsageError, match=f"answer to record 3 must fit into {most} positions"):
        check_generation(backbone, row(30, most=most + 1), position=2)
    with pytest.raises(UsageError, match="record 1 must have at least one token"):
        check_generation(backbone, row(), position=0)
    with pytest.raises(UsageError, match="by a decoder or an encoder-decoder"):
        check_generation(tiny("bert"), row(30), position=0)


def test_who_joins_late_is_at_the_right_distance_from_its_own_words(tiny):
    """Rows of all lengths end at one column; one that was put elsewhere would see its words further away."""
    backbone = tiny("t5")
    alone = DecodingBatch(backbone)
    expected = [alone.join([row(45, 46, 47)]), *(alone.step() for _ in range(4))]
    batch = DecodingBatch(backbone)
    batch.join([row(30, 31, 32, 33, 34, 35, 36)])
    for _ in range(40):  # past the distances that have a bias of their own
        batch.step()
    found = [batch.join([row(45, 46, 47)]), *(batch.step()[1:] for _ in range(2))]
    batch.keep([1])
    found += [batch.step() for _ in range(2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(likelihoods(ours), likelihoods(theirs), of=backbone)


@pytest.mark.parametrize("seed", range(5))
def test_words_at_other_distances_would_be_caught(tiny, seed):
    """The twin: the same row, its words one column further from the next one, and nothing in that column."""
    backbone = tiny("t5")
    batch = DecodingBatch(backbone)
    ids = tuple(int(backbone.bundle.eligible[3 * seed + place]) for place in range(3))
    batch.join([row(*ids)])
    batch.step()
    twin = DecodingBatch(backbone)
    twin.join([row(*ids)])
    twin.step()
    with torch.inference_mode():
        for layer in twin._read._cache.self_attention_cache.layers:
            layer.keys, layer.values = (
                torch.nn.functional.pad(part, (0, 0, 0, 1)) for part in (layer.keys, layer.values)
            )
        twin._read._written = twin._read._written + 1
    assert abs(twin.step()[0].logprob - batch.step()[0].logprob) > 1e-4

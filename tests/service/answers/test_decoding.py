"""Rows that are written together against the same rows written alone, and against passes without any cache."""

import pytest
import torch

from closeness import assert_close
from rapt.errors import UsageError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling, check_generation, choose
from rapt.service.answers.writing import Text
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.steering import NOTHING, LoraPair, Tuned, steer
from rapt.wire.adapter_files import AdapterCard
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for

STEPS = 6


@pytest.fixture(scope="module", params=["llama", "gpt2", "t5"])
def backbone(request, tmp_path_factory):
    return tiny_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")


def card(backbone, task="generation", plain=0):
    return AdapterCard(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        kind=backbone.kind,
        method="prompt_tuning",
        task=task,
        pairs=False,
        labels=(),
        mechanism=manifest_for(backbone).mechanism,
        plain_tokens=plain,
        prompt_length=0,
        training={},
        metrics={},
        weights_sha256="",
        created_by="test",
    )


def adapter(backbone, tuned, **changes):
    width = backbone.hidden_size
    return Adapter(
        tuned=tuned, head_weight=torch.zeros(0, width), head_bias=torch.zeros(0), card=card(backbone, **changes)
    )


@pytest.fixture(scope="module")
def adapters(backbone):
    """A bare backbone, prompts of two lengths, a prefix, and low-rank changes."""
    generator = torch.Generator().manual_seed(1)
    site = backbone.sites.attention[0]
    shape = (len(backbone.sites.attention), 2, site.key_heads, 3, site.head_size)
    # The first layer, and in an encoder-decoder what its second half sees of the text.
    changed = [
        next(iter(backbone.sites.linear)),
        *(n for n in backbone.sites.linear if n.endswith("EncDecAttention.k")),
    ]
    lora = {}
    for name in changed:
        inner, outer = backbone.sites.linear[name]
        lora[name] = LoraPair(
            a=torch.randn(2, inner, generator=generator) * 0.3, b=torch.randn(outer, 2, generator=generator) * 0.3
        )
    tuned = [
        Tuned(prompt=torch.randn(2, backbone.hidden_size, generator=generator)),
        Tuned(prompt=torch.randn(5, backbone.hidden_size, generator=generator)),
        Tuned(prefix=torch.randn(shape, generator=generator)),
        Tuned(lora=lora),
    ]
    return [None, *(adapter(backbone, part) for part in tuned)]


def rows_for(backbone, adapters, *, count=10, temperature=0.0, **sampling):
    generator = torch.Generator().manual_seed(4)
    eligible = torch.from_numpy(backbone.bundle.eligible.copy())
    rows = []
    for number in range(count):
        length = int(torch.randint(1, 9, (), generator=generator))
        chosen = eligible[torch.randint(len(eligible), (length,), generator=generator)]
        rows.append(
            GenerationRow(
                token_ids=tuple(chosen.tolist()),
                adapter=adapters[number % len(adapters)],
                most_tokens=STEPS,
                sampling=Sampling(temperature=temperature, seed=number, **sampling),
            )
        )
    return rows


def without_cache(backbone, row, *, steps=STEPS):
    """Every token from a whole pass over all that was written before: no cache, no batch."""
    tuned = NOTHING if row.adapter is None else row.adapter.tuned
    steering, written, logprobs = steer([tuned]), [], []
    draws = torch.Generator().manual_seed(row.sampling.seed)
    follows = backbone.kind == "decoder"
    for _ in range(steps):
        layout = lay_out(
            backbone,
            prompt_lengths=steering.prompt_lengths,
            privatized_plain_tokens=[()],
            texts=[row.token_ids],
            cues=[row.cue(backbone)],
            continuations=[written if follows else ()],
        )
        with torch.inference_mode():
            states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering)
            if not follows:
                states = backbone.decode(
                    torch.tensor([[*backbone.frame.decoder_start, *written]]),
                    encoder_states=states,
                    encoder_mask=layout.attention_mask,
                    steering=steering,
                )
            choice = choose(
                backbone.word_logits(states[:, -1]), [row.sampling], draws=[float(torch.rand((), generator=draws))]
            )[0]
        written.append(choice.token_id)
        logprobs.append(choice.logprob)
    return written, logprobs


def together(backbone, rows, *, steps=STEPS):
    batch = DecodingBatch(backbone)
    choices = [[choice] for choice in batch.join(rows)]
    for _ in range(steps - 1):
        for own, choice in zip(choices, batch.step(), strict=True):
            own.append(choice)
    return choices


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_mixed_adapters_write_what_each_writes_alone_without_a_cache(backbone, adapters, temperature):
    rows = rows_for(backbone, adapters, temperature=temperature)
    for row, choices in zip(rows, together(backbone, rows), strict=True):
        tokens, logprobs = without_cache(backbone, row)
        assert [choice.token_id for choice in choices] == tokens
        assert_close([choice.logprob for choice in choices], logprobs, of=backbone)


def test_a_mixed_batch_gives_the_answers_of_one_row_at_a_time_to_five_digits(backbone, adapters):
    rows = rows_for(backbone, adapters, top_logprobs=5)
    for row, choices in zip(rows, together(backbone, rows), strict=True):
        for found, expected in zip(choices, together(backbone, [row])[0], strict=True):
            assert [token for token, _ in found.top] == [token for token, _ in expected.top]
            assert_close([value for _, value in found.top], [value for _, value in expected.top], of=backbone)


@pytest.mark.parametrize("seed", range(5))
def test_one_adapter_for_every_row_would_be_caught(backbone, adapters, seed):
    rows = rows_for(backbone, [adapters[1 + seed % 4], adapters[1 + (seed + 1) % 4]], count=6)
    active = [GenerationRow(token_ids=row.token_ids, adapter=rows[0].adapter, most_tokens=STEPS) for row in rows]
    right = [[choice.logprob for choice in choices] for choices in together(backbone, rows)]
    wrong = [[choice.logprob for choice in choices] for choices in together(backbone, active)]
    assert max(abs(a[0] - b[0]) for a, b in zip(right, wrong, strict=True)) > 1e-3


def test_rows_join_and_leave_in_the_middle_and_disturb_nobody(backbone, adapters):
    rows = rows_for(backbone, adapters, count=6)
    expected = [without_cache(backbone, row)[0] for row in rows]
    batch, written = DecodingBatch(backbone), {}
    present = []

    def join(*numbers):
        for number, choice in zip(numbers, batch.join([rows[number] for number in numbers]), strict=True):
            written[number] = [choice.token_id]
            present.append(number)

    def step():
        for number, choice in zip(present, batch.step(), strict=True):
            written[number].append(choice.token_id)

    def leave(number):
        batch.keep([place for place, other in enumerate(present) if other != number])
        present.remove(number)

    join(0, 1)
    step()
    join(2)
    step()
    leave(0)
    step()
    join(3, 4, 5)
    step()
    step()
    leave(4)
    leave(1)
    step()
    for number, tokens in written.items():
        assert tokens == expected[number][: len(tokens)]
    for number in list(present):
        leave(number)
    assert len(batch) == 0
    join(0)
    assert written[0] == expected[0][:1]


def test_what_cannot_be_written_is_refused(backbone, adapters):
    row = GenerationRow(token_ids=(5,), most_tokens=1000)
    with pytest.raises(UsageError, match=rf"record 4 must fit into {backbone.max_positions} positions"):
        check_generation(backbone, row, position=3)
    classifier = adapter(backbone, Tuned(), task="classification")
    with pytest.raises(UsageError, match="must write text"):
        check_generation(backbone, GenerationRow(token_ids=(5,), adapter=classifier, most_tokens=1), position=0)
    planned = adapter(backbone, Tuned(), plain=3)
    with pytest.raises(UsageError, match="record 1 must have 3 privatized plain tokens"):
        check_generation(backbone, GenerationRow(token_ids=(5,), adapter=planned, most_tokens=1), position=0)


def test_a_row_that_is_put_aside_goes_on_where_it_was(backbone, adapters):
    rows = rows_for(backbone, adapters, count=5)
    expected = [without_cache(backbone, row)[0] for row in rows]
    batch = DecodingBatch(backbone)
    written = [[choice.token_id] for choice in batch.join(rows)]
    aside = batch.take_out(1)
    for number, choice in zip((0, 2, 3, 4), batch.step(), strict=True):
        written[number].append(choice.token_id)
    batch.put_in(aside)
    for _ in range(2):
        for number, choice in zip((0, 2, 3, 4, 1), batch.step(), strict=True):
            written[number].append(choice.token_id)
    assert [len(tokens) for tokens in written] == [4, 3, 4, 4, 4]
    assert all(tokens == whole[: len(tokens)] for tokens, whole in zip(written, expected, strict=True))


def test_a_long_prefix_and_a_long_text_fill_up_nobody_elses_row(backbone):
    site = backbone.sites.attention[0]

    def lane(*, prefix=0, most=8, repeatable=False):
        keys = torch.zeros(len(backbone.sites.attention), 2, site.key_heads, prefix, site.head_size)
        row = GenerationRow(
            token_ids=(5,),
            adapter=adapter(backbone, Tuned(prefix=keys)) if prefix else None,
            most_tokens=most,
            sampling=Sampling(repeatable=repeatable),
        )
        return Text(row, "a", lambda _: None).lane

    assert lane() == lane(prefix=3) == lane(prefix=64) == lane(most=900)
    assert len({lane(), lane(prefix=65), lane(prefix=1000), lane(most=3000), lane(repeatable=True)}) == 5
    assert lane(prefix=600) == lane(prefix=1000)


# What is an encoder-decoder's own: a text is read once, an answer has positions of its own, and none is too late.


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

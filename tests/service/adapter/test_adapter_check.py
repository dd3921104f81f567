"""An adapter that anybody may bring: it is refused in one line, or it answers every record with finite numbers."""

import dataclasses
import functools
import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hostile_documents import MARKER, mutations_of, value_or_refusal
from rapt.errors import RaptError, TuningError, WireError
from rapt.service.adapter.adapter import CARD, PEFT_CONFIG, WEIGHTS, adapter_from_files, adapter_to_files
from rapt.service.adapter.adapter_check import LARGEST_WEIGHT
from rapt.service.adapter.methods import METHODS
from rapt.service.adapter.methods.lora import HIGHEST_RANK
from rapt.service.answers.prediction import ClassificationRow, classify, plan
from rapt.service.answers.rows import PrivateRow, lay_out_rows
from rapt.service.backbone.layout import embed_with_prompts
from rapt.service.backbone.steering import Tuned, steer
from rapt.service.tuning.tuner import ReconstructionConfig, tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.adapter_files import MOST_PROMPT_POSITIONS, pack_adapter, unpack_adapter
from rapt.wire.manifest import MOST_LABELS, PlainTokens
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tuning_material import manifest_for

CELLS = (
    ("bert", "prompt_tuning", "classification"),
    ("bert", "prefix_tuning", "label_words"),
    ("bert", "lora", "pairs"),
    ("bert", "linear_probing", "classification"),
    ("llama", "prefix_tuning", "generation"),
    ("llama", "lora", "classification"),
    ("gpt2", "p_tuning", "label_words"),
    ("t5", "lora", "generation"),
    ("t5", "prefix_tuning", "classification"),
)
each_cell = pytest.mark.parametrize(("architecture", "method", "row"), CELLS, ids=map("-".join, CELLS))
PLAIN = 2


def record(backbone, position, *, plain=PLAIN, pairs=False, target=False):
    words = tuple(backbone.bundle.eligible.tolist()[5:15])
    return PrivatizedRecord(
        token_ids=words[position : position + 3],
        label=position % 2,
        privatized_plain_tokens=(words[0],) * plain,
        plain_tokens=(words[1],) * plain if plain else None,
        second_token_ids=words[:2] if pairs else None,
        target_ids=words[:2] if target else None,
    )


@pytest.fixture(scope="module")
def files_of(tiny):
    @functools.cache
    def tuned(architecture, method, row):
        backbone = tiny(architecture)
        pairs, target = row == "pairs", row == "generation"
        records = tuple(record(backbone, position, pairs=pairs, target=target) for position in range(4))
        pool = tuple(backbone.bundle.eligible.tolist()[5:15])
        manifest = manifest_for(backbone, plain_tokens=PlainTokens(count=PLAIN, pool=pool, fixed=None))
        manifest = dataclasses.replace(manifest, pairs=pairs, targets="public" if target else None)
        config = dataclasses.replace(
            make_default_config(method),
            task="classification" if pairs else row,
            label_words=("good", "bad") if row == "label_words" else (),
            prompt_length=2,
            epochs=1,
            reconstruction=ReconstructionConfig(head_size=4) if METHODS[method].reconstructs else None,
        )
        file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
        return adapter_to_files(tune(backbone, file, config=config))

    return tuned


def answers(backbone, adapter):
    """Numbers of every kind of answer: class probabilities, or the states that a text is written from."""
    plain, pairs = adapter.card.plain_tokens, adapter.card.pairs
    asked = [record(backbone, place, plain=plain, pairs=pairs) for place in range(3)]
    rows = [
        dict(
            token_ids=one.token_ids,
            adapter=adapter,
            privatized_plain_tokens=one.privatized_plain_tokens,
            second_token_ids=one.second_token_ids,
        )
        for one in asked
    ]
    if adapter.card.task != "generation":
        return torch.tensor(classify(backbone, [ClassificationRow(**row) for row in rows]))
    private = [PrivateRow(**row) for row in rows]
    steering = steer([row.tuned for row in private])
    layout = lay_out_rows(backbone, private, steering=steering)
    states = backbone.encode(
        embed_with_prompts(backbone, layout, steering.prompts),
        attention_mask=layout.attention_mask,
        position_ids=layout.position_ids,
        steering=steering,
    )
    if backbone.kind == "encoder-decoder":
        start = torch.zeros(len(rows), 1, dtype=torch.long)
        states = backbone.decode(start, encoder_states=states, encoder_mask=layout.attention_mask, steering=steering)
    real = (
        layout.attention_mask.bool() if backbone.kind == "decoder" else torch.ones(states.shape[:2], dtype=torch.bool)
    )
    return backbone.word_logits(states[real])


def signed(files, *, weights=None, **fields):
    """The files with other weights and other fields in the card, under the digest that fits."""
    weights = files[WEIGHTS] if weights is None else weights
    digest = hashlib.sha256(weights).hexdigest()
    card = {**json.loads(files[CARD]), "weights_sha256": digest, **fields}
    return {**files, WEIGHTS: weights, CARD: json.dumps(card).encode()}


def refused_or_finite(files, backbone):
    adapter = value_or_refusal(lambda: adapter_from_files(files, backbone=backbone))
    if adapter is not None:
        assert bool(torch.isfinite(answers(backbone, adapter)).all())
    return adapter


@each_cell
def test_what_goes_out_comes_in_and_is_the_same_to_the_byte(tiny, files_of, architecture, method, row):
    files = files_of(architecture, method, row)
    again = adapter_from_files(unpack_adapter(pack_adapter(files)), backbone=tiny(architecture))
    assert adapter_to_files(again) == files
    assert bool(torch.isfinite(answers(tiny(architecture), again)).all())


@each_cell
@settings(max_examples=40)
@given(st.data())
def test_another_card_is_refused_or_answers(tiny, files_of, architecture, method, row, data):
    files = files_of(architecture, method, row)
    card = data.draw(mutations_of(json.loads(files[CARD])))
    raw = json.dumps(card).encode("utf-8", "surrogatepass")
    refused_or_finite({**files, CARD: raw}, tiny(architecture))


NUMBERS = st.sampled_from(
    [
        0.0,
        -0.0,
        1e-45,
        1.0,
        -LARGEST_WEIGHT,
        LARGEST_WEIGHT,
        2 * LARGEST_WEIGHT,
        65504.0,
        3e38,
        float("inf"),
        float("nan"),
    ]
)
TYPES = st.sampled_from(
    [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64, torch.uint8]
)


@each_cell
@settings(max_examples=60)
@given(st.data())
def test_other_tensors_are_refused_or_answer(tiny, files_of, architecture, method, row, data):
    files = files_of(architecture, method, row)
    tensors = load_tensors(files[WEIGHTS])
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        change = data.draw(st.sampled_from(["drop", "add", "rename", "type", "rows", "columns", "flat", "fill", "one"]))
        tensor = tensors[name]
        if change == "drop" or change == "rename":
            del tensors[name]
            if change == "rename" or not tensors:
                tensors[data.draw(st.sampled_from([MARKER, "prompt_embeddings", name + ".weight"]))] = tensor
        elif change == "add":
            added = data.draw(st.sampled_from([MARKER, "prompt_embeddings", "base_model.model.x.lora_A.weight"]))
            tensors[added] = tensor.clone()
        elif change == "type":
            real = tensor.real if tensor.is_complex() else tensor  # torch warns of what a cast would drop
            tensors[name] = real.to(data.draw(TYPES))
        elif change == "rows" and tensor.dim():
            tensors[name] = tensor.repeat(data.draw(st.sampled_from([0, 2, 300])), *[1] * (tensor.dim() - 1))
        elif change == "columns" and tensor.dim() == 2:
            tensors[name] = tensor[:, : data.draw(st.sampled_from([0, 1, tensor.shape[1] - 1]))].contiguous()
        elif change == "flat":
            tensors[name] = tensor.flatten().clone()
        elif change == "fill":
            tensors[name] = torch.full_like(tensor, data.draw(NUMBERS)) if tensor.is_floating_point() else tensor
        elif tensor.numel() and tensor.is_floating_point():
            tensors[name] = tensor.clone()
            tensors[name].view(-1)[0] = data.draw(NUMBERS)
    refused_or_finite(signed(files, weights=save_tensors(tensors)), tiny(architecture))


@each_cell
def test_the_largest_weights_that_are_taken_answer_with_finite_numbers(tiny, files_of, architecture, method, row):
    files = files_of(architecture, method, row)
    for sign in (1, -1):
        tensors = {}
        for name, tensor in load_tensors(files[WEIGHTS]).items():
            rank = tensor.shape[0] if name.endswith("lora_A.weight") else tensor.shape[-1]
            size = LARGEST_WEIGHT
            if name.endswith("lora_A.weight"):
                size = 1 / (tensor.shape[1] * rank)
            elif name.endswith("lora_B.weight"):
                size = 0.999 * LARGEST_WEIGHT
            tensors[name] = torch.full_like(tensor, sign * size)
        assert refused_or_finite(signed(files, weights=save_tensors(tensors)), tiny(architecture)) is not None


def safetensors(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "weights",
    [
        b"", b"\0" * 8, b"\xff" * 8, b"\x80\x04N.", safetensors(b""), safetensors(b"{}"), safetensors(b"[]"),
        safetensors(b"[" * 100_000), safetensors({"a": {"dtype": "F32"}}), (2**63).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}" + b" " * 100, safetensors(b" " * (2 * 1024 * 1024) + b"{}"),
        safetensors(b'{"a":' * 5000), safetensors({f"t{n}": entry([0], 0, 0) for n in range(10_001)}),
        safetensors({"a": entry([2**62, 2**62], 0, 4)}, b"0000"), safetensors({"a": entry([1], 0, 4)}),
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0000"), safetensors({"a": entry([-1], 4, 0)}),
        safetensors({"a": entry([1], 4, 8)}, b"00000000"), safetensors({"a": entry([1.0], 0, 4)}, b"0000"),
        safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry([0], 0, 0)).encode(),) * 2)),
        safetensors({"a": entry([1], 0, 1, "I8")}, b"0"), safetensors({"a": entry([1], 0, 8, "F64")}, b"0" * 8),
        safetensors({"__metadata__": {MARKER: MARKER}}), safetensors({MARKER: entry([1], 0, 4, MARKER)}, b"0000"),
    ],
)  # fmt: skip
def test_weights_that_are_no_safetensors_of_an_adapter_are_refused(tiny, files_of, weights):
    files = signed(files_of(*CELLS[0]), weights=weights)
    with pytest.raises(WireError, match=r"an adapter's weights must"):
        adapter_from_files(files, backbone=tiny("bert"))
    assert refused_or_finite(files, tiny("bert")) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [str(n) for n in range(64_000)]}, f"at most {MOST_LABELS} labels"),
        ({"labels": []}, "must name its labels"),
        ({"labels": ["\ud800", "b"]}, "UTF-8|surrogate"),
        ({"prompt_length": 15_000}, f"prompt_length from 0 to {MOST_PROMPT_POSITIONS}"),
        ({"prompt_length": -1}, "prompt_length from 0"),
        ({"prompt_length": 0}, "count prompt positions"),
        ({"prompt_length": 62}, "leave room for a text in 64 positions"),
        ({"plain_tokens": -3}, "plain_tokens from 0"),
        ({"plain_tokens": 100}, "leave room for a text"),
        ({"method": "sesame"}, "must name a method of"),
        ({"method": "lora"}, "count prompt positions"),
        ({"method": "prefix_tuning"}, "an adapter's prompt must be of shape"),
        ({"task": "sesame"}, "must name a task of"),
        ({"task": "generation", "labels": []}, "must be of a decoder"),
        ({"kind": "decoder"}, "the backbone's kind, encoder"),
        ({"pairs": 1}, "pairs of type bool"),
        ({"training": {f"n{n}": n for n in range(100)}}, "at most 64 names"),
        ({"metrics": {"loss": "text"}}, "plain values in metrics"),
        ({"mechanism": {"name": "laplace", "parameters": {f"p{n}": n for n in range(20)}}}, "16 parameters"),
    ],
)  # fmt: skip
def test_a_card_that_no_run_leaves_is_refused(tiny, files_of, fields, message):
    with pytest.raises(RaptError, match=message):
        adapter_from_files(signed(files_of(*CELLS[0]), **fields), backbone=tiny("bert"))


def test_a_rank_without_a_bound_is_refused(tiny, files_of):
    files = files_of("llama", "lora", "classification")
    tensors = load_tensors(files[WEIGHTS])
    for name, tensor in tensors.items():
        if name.endswith("lora_A.weight"):
            tensors[name] = torch.zeros(HIGHEST_RANK + 1, tensor.shape[1])
        elif name.endswith("lora_B.weight"):
            tensors[name] = torch.zeros(tensor.shape[0], HIGHEST_RANK + 1)
    with pytest.raises(WireError, match="of rank 1 to 256"):
        adapter_from_files(signed(files, weights=save_tensors(tensors)), backbone=tiny("llama"))


@each_cell
@settings(max_examples=30)
@given(st.data())
def test_another_configuration_of_peft_is_refused_or_says_the_same(tiny, files_of, architecture, method, row, data):
    files = files_of(architecture, method, row)
    config = data.draw(mutations_of(json.loads(files.get(PEFT_CONFIG, b"{}"))))
    given_files = {**files, PEFT_CONFIG: json.dumps(config).encode("utf-8", "surrogatepass")}
    adapter = refused_or_finite(given_files, tiny(architecture))
    if adapter is not None:
        assert adapter_to_files(adapter) == files


@pytest.mark.parametrize("change", [{"r": 4}, {"lora_alpha": 32}, {"peft_type": "IA3"}, {"target_modules": ["q_proj"]}])
def test_a_configuration_by_which_peft_would_compute_something_else_is_refused(tiny, files_of, change):
    files = files_of("llama", "lora", "classification")
    config = {**json.loads(files[PEFT_CONFIG]), **change}
    with pytest.raises(WireError, match=f"must have {next(iter(change))} as the weights have it"):
        adapter_from_files({**files, PEFT_CONFIG: json.dumps(config).encode()}, backbone=tiny("llama"))


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), 3e38])
def test_a_run_that_has_diverged_leaves_no_adapter_that_nobody_can_load(tiny, files_of, worst):
    adapter = adapter_from_files(files_of(*CELLS[0]), backbone=tiny("bert"))
    diverged = dataclasses.replace(adapter, head_bias=torch.full_like(adapter.head_bias, worst))
    with pytest.raises(TuningError, match="the run has diverged: lower its learning rate"):
        adapter_to_files(diverged)


def test_a_prefix_costs_its_positions_and_a_long_one_shares_no_pass_with_those_who_have_none(tiny, files_of):
    backbone, files = tiny("bert"), files_of("bert", "prefix_tuning", "label_words")
    prefixed = adapter_from_files(files, backbone=backbone)
    words = adapter_from_files(files_of("bert", "prompt_tuning", "classification"), backbone=backbone)
    other = dataclasses.replace(prefixed, tuned=Tuned())
    long = dataclasses.replace(prefixed, tuned=Tuned(prefix=prefixed.tuned.prefix.repeat(1, 1, 1, 50, 1)))
    plain = (1,) * PLAIN
    rows = [
        ClassificationRow(token_ids=(1, 2, 3), adapter=adapter, privatized_plain_tokens=plain)
        for adapter in (long, other, long, other, words, prefixed)
    ]
    assert rows[0].positions == rows[1].positions + 100
    assert rows[0].added_positions == 100 + PLAIN
    assert sorted(map(sorted, plan(rows))) == [[0, 2], [1, 3, 5], [4]]  # two more keys cost the others next to nothing

"""Our BERT against Hugging Face's: in float64, where rounding hides nothing, and in the float32 that is served."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging

from closeness import assert_close
from rapt.public_models import find_model_folder
from rapt.service.backbone import bert_forward
from rapt.service.backbone.bert_forward import bert_forward_of
from rapt.service.backbone.injection import install
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.steering import LoraPair, Tuned, apply_steering, steer

LENGTHS = (9, 23, 4, 17)


def oracle(folder, *, dtype):
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = BertModel.from_pretrained(str(folder), add_pooling_layer=False, local_files_only=True, dtype=dtype)
    install(model.requires_grad_(False).eval())
    return model


CASES = [
    ("bert-tiny", torch.float32, None),
    ("bert-tiny", torch.float64, 1),
    ("random", torch.float64, 1),
    ("random", torch.float64, 64),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory):
    """Ours and theirs: trained weights with old names, and random ones of another shape with new names."""
    name, dtype, multiple = request.param
    if name == "bert-tiny":
        folder = find_model_folder("bert-tiny")
    else:
        folder = tmp_path_factory.mktemp("random")
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=50,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=80,
            max_position_embeddings=64,
            initializer_range=0.4,
        )
        BertModel(config).save_pretrained(folder)
    theirs = oracle(folder, dtype=dtype)
    return bert_forward_of(theirs, dtype=dtype, multiple=multiple), theirs


def batch_for(model, *, lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(max(lengths)).expand(len(lengths), -1)
    return {
        "inputs_embeds": torch.randn(
            len(lengths), max(lengths), model.config.hidden_size, generator=generator, dtype=model.dtype
        ),
        "attention_mask": (columns < torch.tensor(lengths)[:, None]).long(),
        "position_ids": columns,
    }


def adapters(model, *, seed=0):
    """One of each kind: nothing, two prefixes of different lengths, two low-rank changes of different ranks."""
    generator = torch.Generator().manual_seed(seed)
    config, dtype = model.config, model.dtype
    heads, width = config.num_attention_heads, config.hidden_size
    made = [Tuned()]
    for length in (3, 5):
        shape = (config.num_hidden_layers, 2, heads, length, width // heads)
        made.append(Tuned(prefix=torch.randn(shape, generator=generator, dtype=dtype)))
    names = (
        ("encoder.layer.0.attention.self.query", width, width),
        ("encoder.layer.1.attention.self.value", width, width),
        ("encoder.layer.1.attention.output.dense", width, width),
        ("encoder.layer.0.intermediate.dense", width, config.intermediate_size),
        ("encoder.layer.1.output.dense", config.intermediate_size, width),
    )
    for rank in (2, 3):
        changes = {
            name: LoraPair(
                a=0.2 * torch.randn(rank, inner, generator=generator, dtype=dtype),
                b=0.2 * torch.randn(outer, rank, generator=generator, dtype=dtype),
                **EXTRA,
            )
            for name, inner, outer in names
        }
        made.append(Tuned(lora=changes))
    return made


SIZE = {"layers": 3, "width": 48}
EXTRA = {"scale": 1.0} if "scale" in LoraPair.__dataclass_fields__ else {}


def close(ours, theirs, batch):
    real = batch["attention_mask"].bool()
    assert_close(ours[real], theirs[real], **SIZE)


def both(pair, batch, steering=None):
    ours, theirs = pair
    found = ours(**batch, steering=steering)
    with apply_steering(steering):
        expected = theirs(**batch).last_hidden_state
    return found, expected


@pytest.mark.parametrize("lengths", [(7,), (6, 6, 6), LENGTHS, (1, 40)])
def test_states_are_those_of_hugging_face(pair, lengths):
    batch = batch_for(pair[1], lengths=lengths)
    found, expected = both(pair, batch)
    close(found, expected, batch)
    assert torch.all(found[batch["attention_mask"] == 0] == 0)


@pytest.mark.parametrize("kinds", [(1, 1, 1, 1), (0, 1, 2, 1), (3, 3, 3, 3), (0, 3, 4, 3), (1, 3, 0, 4)], ids=str)
def test_steered_rows_are_those_of_hugging_face(pair, kinds):
    batch, made = batch_for(pair[1]), adapters(pair[1])
    steering = steer([made[kind] for kind in kinds])
    found, expected = both(pair, batch, steering)
    close(found, expected, batch)
    if len(set(kinds)) > 1:
        swapped = steer([made[kind] for kind in kinds[::-1]])
        with pytest.raises(AssertionError):
            close(pair[0](**batch, steering=swapped), expected, batch)


@pytest.mark.parametrize("lengths", [LENGTHS, (9, 9, 9)], ids=str)
@pytest.mark.parametrize("kinds", [(0,), (1, 2, 0, 1), (0, 3, 4, 3)], ids=str)
def test_states_that_are_asked_for_are_those_of_a_whole_pass(pair, lengths, kinds):
    """Positions in a run, one alone, and scattered ones, in rows of any length, with prefixes or without."""
    ours, theirs = pair
    batch = batch_for(theirs, lengths=lengths)
    made = adapters(theirs)
    steering = steer([made[kinds[row % len(kinds)]] for row in range(len(lengths))])
    wanted = torch.zeros_like(batch["attention_mask"])
    wanted[0, 1:7], wanted[1, 0], wanted[2, [0, 3]] = 1, 1, 1
    wanted[3:, 2] = 1
    whole = ours(**batch, steering=steering)
    found = ours(**batch, steering=steering, wanted=wanted)
    asked = wanted.bool()
    assert_close(found[asked], whole[asked], **SIZE)
    if not steering.lora:
        assert bool((found[~asked] == 0).all())


def test_gradients_are_those_of_hugging_face(pair):
    batch, made = batch_for(pair[1]), adapters(pair[1])
    for tuned in (made[0], made[1], made[3]):
        inputs = batch["inputs_embeds"].clone().requires_grad_()
        leaves = [inputs]
        if tuned.prefix is not None:
            tuned = replace(tuned, prefix=tuned.prefix.clone().requires_grad_())
            leaves.append(tuned.prefix)
        if tuned.lora:
            tuned = Tuned(lora={n: replace(p, a=p.a.clone().requires_grad_()) for n, p in tuned.lora.items()})
            leaves += [change.a for change in tuned.lora.values()]
        real = batch["attention_mask"].bool()
        found, expected = both(pair, batch | {"inputs_embeds": inputs}, steer([tuned] * len(LENGTHS)))
        weights = torch.randn_like(expected[real])
        ours = torch.autograd.grad((found[real] * weights).sum(), leaves, retain_graph=True)
        theirs = torch.autograd.grad((expected[real] * weights).sum(), leaves)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, **SIZE, steps=2)  # there and back


def test_the_weights_are_in_memory_once(pair):
    ours, theirs = pair
    fused = ours.get_buffer("0_qkv_weight")
    key = theirs.encoder.layer[0].attention.self.key.weight
    assert key.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    up = theirs.encoder.layer[1].intermediate.dense.weight
    assert up.data_ptr() == ours.get_buffer("1_up_weight").data_ptr()


def test_a_model_of_another_kind_is_left_to_hugging_face(tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8, hidden_act="relu")
    assert bert_forward_of(BertModel(config), dtype=torch.float32) is None


def test_a_backbone_uses_it_with_gradients_and_without():
    backbone = load_backbone("bert-tiny", precision="float32", device="cpu")
    inputs = backbone.embed(torch.tensor([[101, 2204, 102]]))
    places = {"attention_mask": torch.ones(1, 3, dtype=torch.long), "position_ids": torch.arange(3)[None]}
    trained = backbone.encode(inputs.clone().requires_grad_(), **places)
    assert trained.requires_grad
    with torch.inference_mode():
        served = backbone.encode(inputs, **places)
        assert torch.equal(served, backbone.own_forward(inputs, **places))
    assert torch.equal(served, trained.detach())


@pytest.mark.parametrize("asked", [False, True])
def test_products_in_bfloat16_are_of_few_sizes(monkeypatch, asked):
    backbone = load_backbone("bert-tiny", precision="bfloat16", device="cpu")
    rows = set()

    def counted(x, weight, bias):
        rows.add(len(x))
        return linear(x, weight, bias)

    linear = bert_forward.linear
    monkeypatch.setattr(bert_forward, "linear", counted)
    for count in range(3, 40):
        batch = batch_for(backbone.encoder, lengths=(count, 40, 7))
        wanted = (batch["position_ids"] == 2).long() if asked else None
        backbone.own_forward(batch.pop("inputs_embeds"), **batch, wanted=wanted)
    assert rows == {64, 128}

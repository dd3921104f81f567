"""What the folder for the hub promises: plain PEFT computes and writes the same, and vLLM's loader takes the names."""

import dataclasses
import functools
import json
import re
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load as load_tensors

from closeness import assert_close
from rapt.service.adapter.adapter import CARD, PEFT_CONFIG, WEIGHTS, Adapter
from rapt.service.adapter.hub_folder import make_hub_files
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.backbone.layout import embed_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.steering import LoraPair, Tuned, steer
from rapt.whole_files import write_folder
from rapt.wire.adapter_files import HEAD, KNOWN_FILES, README, AdapterCard
from tiny_backbones import TINY, write_family, write_tiny_model
from tuning_material import manifest_for

WRITERS = ("gpt2", "t5", "llama-2", "qwen3", "granite", "bart")
MOST = 9


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A backbone by its architecture or family, with its folder; made once."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp("hub") / name
        (write_tiny_model if name in TINY else write_family)(name, folder)
        return load_backbone(str(folder), precision="float32", device="cpu"), folder

    return make


def adapter_of(backbone, method, *, labels=()):
    """An adapter that changes what is written, of random numbers."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    if method == "lora":
        names = [
            name for name in backbone.sites.linear if re.search(r"\.(q|v|q_proj|v_proj|c_attn|query|value)$", name)
        ]
        sizes = {name: backbone.sites.linear[name] for name in names}
        tuned = Tuned(
            lora={name: LoraPair(a=draw(2, inner), b=draw(outer, 2)) for name, (inner, outer) in sizes.items()}
        )
    else:
        tuned = Tuned(prompt=3 * draw(4, backbone.embedding_size))
    card = AdapterCard(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        kind=backbone.kind,
        method=method,
        task="classification" if labels else "generation",
        pairs=False,
        labels=labels,
        mechanism=manifest_for(backbone).mechanism,
        plain_tokens=0,
        prompt_length=0 if tuned.prompt is None else len(tuned.prompt),
        training={"epochs": 2},
        metrics={"train_loss": 0.25, "step": 8},
        weights_sha256="ab" * 32,
        created_by="rapt 0",
    )
    head = draw(len(labels), backbone.hidden_size), draw(len(labels))
    return Adapter(tuned=tuned, head_weight=head[0], head_bias=head[1], card=card)


def written(backbone, adapter, ids):
    batch = DecodingBatch(backbone)
    row = GenerationRow(token_ids=tuple(ids), adapter=adapter, most_tokens=MOST, sampling=Sampling(temperature=0))
    tokens = [batch.join([row])[0].token_id]
    while len(tokens) < MOST and tokens[-1] != backbone.frame.eos_id:
        tokens.append(batch.step()[0].token_id)
    return tokens


def loaded(folder, files, tmp_path):
    """The folder in plain PEFT, on the class that its README names."""
    write_folder(tmp_path / "out", files)
    name = re.search(r"from transformers import (\w+)", files[README].decode())[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of names that transformers has renamed
        model = getattr(transformers, name).from_pretrained(str(folder))
        return pytest.importorskip("peft").PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()


def written_by_peft(model, text, *, begin, end):
    """The likeliest tokens, each from a whole pass.

    PEFT 0.21 loses its place behind a prompt in the cached steps of `generate` with transformers 5.24: the second token
    already differs from that of its own whole pass.
    """
    tokens, start = [], torch.tensor([begin], dtype=torch.long)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(tokens) < MOST and tokens[-1:] != [end]:
            more = torch.tensor([tokens], dtype=torch.long)
            if begin:
                told = {"input_ids": text, "decoder_input_ids": torch.cat([start, more], dim=1)}
            else:
                told = {"input_ids": torch.cat([text, more], dim=1)}
            mask = torch.ones_like(told["input_ids"])
            tokens.append(int(model(**told, attention_mask=mask).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
@pytest.mark.parametrize("architecture", WRITERS)
def test_plain_peft_writes_what_we_write(opened, architecture, method, tmp_path):
    backbone, folder = opened(architecture)
    ids = [int(token) for token in backbone.bundle.eligible[5:40:7]]
    adapter = adapter_of(backbone, method)
    model = loaded(folder, make_hub_files(adapter, backbone=backbone), tmp_path)
    frame = backbone.frame
    start = () if method == "prompt_tuning" else frame.start  # the prompt begins with it
    cue = frame.between if backbone.kind == "decoder" else ()
    text = torch.tensor([[*start, *ids, *cue, *frame.end]])
    assert written_by_peft(model, text, begin=frame.decoder_start, end=frame.eos_id) == written(backbone, adapter, ids)
    bare = dataclasses.replace(adapter, tuned=Tuned())
    assert written(backbone, bare, ids) != written(backbone, adapter, ids)  # it does something


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_an_encoder_has_the_same_states_in_plain_peft(opened, method, tmp_path):
    backbone, folder = opened("bert")
    adapter = adapter_of(backbone, method, labels=("bad", "good"))
    files = make_hub_files(adapter, backbone=backbone)
    model = loaded(folder, files, tmp_path)
    ids = [int(token) for token in backbone.bundle.eligible[5:40:7]]
    steering = steer([adapter.tuned])
    layout = lay_out(backbone, prompt_lengths=steering.prompt_lengths, privatized_plain_tokens=[()], texts=[ids])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = backbone.encode(
            embed_with_prompts(backbone, layout, steering.prompts),
            attention_mask=layout.attention_mask,
            position_ids=layout.position_ids,
            steering=steering,
        )
        start = () if method == "prompt_tuning" else backbone.frame.start
        text = torch.tensor([[*start, *ids, *backbone.frame.end]])
        theirs = model(input_ids=text, attention_mask=torch.ones_like(text)).last_hidden_state
    assert_close(mine[0, -text.shape[1] :], theirs[0, -text.shape[1] :], of=backbone)
    head = load_tensors(files[HEAD])
    assert torch.equal(head["classifier.weight"], adapter.head_weight)


def test_the_names_are_those_that_vllm_takes(opened):
    """vLLM's loader takes off `base_model.model.`, and wants a layer of the model and `.lora_A.weight` or B."""
    for architecture in ("llama-2", "gpt2", "qwen3"):
        backbone, folder = opened(architecture)
        files = make_hub_files(adapter_of(backbone, "lora"), backbone=backbone)
        layers = dict(transformers.AutoModelForCausalLM.from_pretrained(str(folder)).named_modules())
        config = json.loads(files[PEFT_CONFIG])
        for name in load_tensors(files[WEIGHTS]):
            layer = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name)[1]
            assert layer in layers
            assert layer.rsplit(".", 1)[-1] in config["target_modules"]
        assert (config["peft_type"], config["bias"], config["r"], config["lora_alpha"]) == ("LORA", "none", 2, 2)
        assert not config.keys() & {"modules_to_save", "use_dora", "use_rslora", "rank_pattern"}
        # It scales every layer by alpha / r, and takes (r, in) and (out, r).
        for name, tensor in load_tensors(files[WEIGHTS]).items():
            assert tensor.shape[0 if ".lora_A." in name else 1] == config["r"] == config["lora_alpha"]
        # It refuses what needs more than the rank that it was started with, and knows no head of ours.
        said = "--enable-lora --max-lora-rank 8`, and post `lora_name` and `lora_path` to `/v1/load_lora_adapter`"
        assert said in files[README].decode()
        of_classes = make_hub_files(adapter_of(backbone, "lora", labels=("a", "b")), backbone=backbone)
        assert "vLLM" not in of_classes[README].decode()


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "linear_probing"])
def test_the_readme_says_what_it_is_and_that_no_license_is_stated(opened, method):
    backbone, _ = opened("bert")
    made = adapter_of(backbone, "lora" if method == "linear_probing" else method, labels=("bad", "`good`\n# x"))
    adapter = dataclasses.replace(made, card=dataclasses.replace(made.card, method=method, plain_tokens=3))
    files = make_hub_files(adapter, backbone=backbone)
    assert files.keys() <= KNOWN_FILES
    assert (WEIGHTS in files) == (PEFT_CONFIG in files) == (method != "linear_probing")
    text = files[README].decode()
    card = json.loads(files[CARD])
    for said in (
        *(
            "license: other",
            "**License: not stated.**",
            "unit of protection | `a token`",
            "no promise about other data",
        ),
        *(card["model"], card["vocabulary_hash"], card["weights_sha256"], "| train_loss | 0.25 |"),
        *(adapter.card.mechanism.describe_strength(), "In training 3 privatized public tokens", "Labels are outside"),
    ):
        assert said in text
    assert json.dumps(["bad", "`good`\n# x"]) in text  # on one line, and no heading of its own
    assert ("library_name: peft" in text) == (PEFT_CONFIG in files)


def test_what_stands_behind_a_reader_is_not_for_peft_and_says_so(opened):
    backbone, _ = opened("gpt2")
    behind = dataclasses.replace(backbone, reader=object())
    files = make_hub_files(adapter_of(backbone, "lora"), backbone=behind)
    assert files.keys() == {README, CARD}
    text = files[README].decode()
    assert "PEFT has no adapter that computes this" in text
    assert "The prompt begins" not in text


def test_a_head_on_codes_reads_the_code_and_a_prompt_stands_behind_a_single_token(opened):
    backbone, _ = opened("bert")
    prompt = adapter_of(backbone, "prompt_tuning", labels=("no", "yes"))
    text = make_hub_files(prompt, backbone=backbone)[README].decode()
    assert "begins with the vector of the token that the tokenizer puts first: leave it out" in text
    card = dataclasses.replace(prompt.card, method="linear_probing")
    on_codes = make_hub_files(
        dataclasses.replace(prompt, card=card), backbone=dataclasses.replace(backbone, architecture="codes")
    )
    assert "read a class off the mean of the last states" in text
    assert "read a class off the code of a text" in on_codes[README].decode()


def test_low_rank_changes_of_several_ranks_say_so(opened, tmp_path):
    backbone, folder = opened("llama-2")
    adapter = adapter_of(backbone, "lora")
    lora = dict(adapter.tuned.lora)
    first = next(iter(lora))
    lora[first] = LoraPair(a=lora[first].a[:1], b=lora[first].b[:, :1])
    mixed = dataclasses.replace(adapter, tuned=Tuned(lora=lora))
    model = loaded(folder, make_hub_files(mixed, backbone=backbone), tmp_path)
    ids = [int(token) for token in backbone.bundle.eligible[5:40:7]]
    text = torch.tensor([[*backbone.frame.start, *ids, *backbone.frame.between]])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.generate(input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=4, do_sample=False)
    assert found[0, text.shape[1] :].tolist() == written(backbone, mixed, ids)[:4]

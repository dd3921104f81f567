"""A law for everything that is used of `transformers` beyond its models by name: what fails here has moved there."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from transformers.activations import GELUActivation

import rapt
from closeness import assert_close
from rapt.service.answers.decoding import RowCache
from rapt.service.backbone.library import (
    activation,
    attend_fused,
    empty_cache,
    list_cache_layers,
    make_cache_arguments,
    quiet,
    read_linear_sizes,
    register_attention,
    render_chat,
)

INNER = Path("service/backbone/library.py")
IDS = torch.tensor([[30, 31, 32, 33]])


def test_nothing_else_names_an_inner_part_of_the_library():
    folder = Path(rapt.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            inner = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers.")
            if inner or (
                isinstance(node, ast.Import) and any(name.name.startswith("transformers") for name in node.names)
            ):
                found.add(path.relative_to(folder))
    assert found == {INNER}


def last_states(model, cache, ids=IDS, **more):
    """Token by token through a cache."""
    states = [
        model(input_ids=ids[:, at : at + 1], **make_cache_arguments(model, cache), **more) for at in range(ids.shape[1])
    ]
    return torch.cat([found.last_hidden_state for found in states], dim=1)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_takes_our_cache_and_reads_from_it_what_it_would_see_without_one(tiny, name):
    encoder = tiny(name).encoder
    cache = RowCache(torch.tensor([1]))
    with torch.inference_mode():
        whole = encoder(input_ids=IDS, use_cache=False).last_hidden_state
        alone = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        first = encoder(
            input_ids=IDS[:, :1], attention_mask=alone, **make_cache_arguments(encoder, cache)
        ).last_hidden_state
        cache.filled()
        later = []
        for at in range(1, 4):
            cache.make_room()
            seen = (torch.arange(cache.get_seq_length()) <= cache.lengths[:, None])[:, None, None]
            positions = cache.lengths[:, None]
            found = encoder(
                input_ids=IDS[:, at : at + 1],
                attention_mask=seen,
                position_ids=positions,
                **make_cache_arguments(encoder, cache),
            )
            later.append(found.last_hidden_state)
            cache.advance()
    assert_close(torch.cat([first, *later], dim=1), whole, of=tiny(name))


def test_an_encoder_decoder_reads_what_is_replaced_in_the_layers_of_its_cache(tiny):
    decoder, texts = tiny("t5").decoder, torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = decoder(input_ids=IDS, encoder_hidden_states=texts, use_cache=False).last_hidden_state
        cache = empty_cache()
        assert_close(last_states(decoder, cache, encoder_hidden_states=texts), whole, of=tiny("t5"))
        layers = [*list_cache_layers(cache.self_attention_cache), *list_cache_layers(cache.cross_attention_cache)]
        assert [tuple(layer.keys.shape) for layer in layers] == [(1, 4, 4, 8)] * 2 + [(1, 4, 3, 8)] * 2
        before = decoder(input_ids=IDS[:, :1], encoder_hidden_states=texts, **make_cache_arguments(decoder, cache))
        for layer in list_cache_layers(cache.self_attention_cache):
            layer.keys, layer.values = layer.keys[:, :, :4], layer.values[:, :, :4]
        again = decoder(input_ids=IDS[:, :1], encoder_hidden_states=texts, **make_cache_arguments(decoder, cache))
        for layer in list_cache_layers(cache.cross_attention_cache):
            layer.values = layer.values + 1
        other = decoder(input_ids=IDS[:, :1], encoder_hidden_states=texts, **make_cache_arguments(decoder, cache))
    assert_close(again.last_hidden_state, before.last_hidden_state, of=tiny("t5"))
    assert (other.last_hidden_state - again.last_hidden_state).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2"])
def test_an_attention_function_is_called_with_what_the_librarys_own_takes(tiny, name):
    """The library's function, called by ours, gives its own states; the mask is boolean, a masked key unseen."""
    model, masks = tiny(name).sites.model, []

    def noted(*tensors, **settings):
        masks.append(tensors[4] if len(tensors) > 4 else settings.get("attention_mask"))
        return attend_fused(*tensors, **settings)

    register_attention("noted", noted)
    ours = model.config._attn_implementation
    ids = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    ids |= {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    try:
        found = []
        for way in ("sdpa", "eager", "noted"):
            model.set_attn_implementation(way)
            with torch.inference_mode():
                found.append(model(**ids)[0][:, :3])
    finally:
        model.set_attn_implementation(ours)
    assert torch.equal(found[0], found[2])
    assert_close(found[1], found[2], of=tiny(name))
    assert masks
    assert {mask.dtype for mask in masks if mask is not None} == {torch.bool}


def test_linear_layers_of_every_kind_have_sizes(tiny):
    gpt2, llama = tiny("gpt2").sites.model, tiny("llama").sites.model
    assert read_linear_sizes(gpt2.h[0].attn.c_attn) == (32, 96)
    assert read_linear_sizes(llama.layers[0].mlp.up_proj) == (32, 64)
    assert read_linear_sizes(llama.norm) is None
    assert set(tiny("gpt2").sites.linear) == {
        name for name, module in gpt2.named_modules() if getattr(module, "weight", None) is not None
        and module.weight.ndim == 2 and not isinstance(module, torch.nn.Embedding)
    }  # fmt: skip


def test_an_activation_is_found_by_its_name():
    assert isinstance(activation("gelu"), GELUActivation)
    assert activation("relu")(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


def test_a_chat_is_what_its_template_writes():
    template = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    assert (
        render_chat(template, [{"role": "user", "content": "m"}], bos_token="<s>", eos_token="</s>")
        == "<s>[user]m</s>[assistant]"
    )


def test_a_model_is_loaded_without_a_word_and_what_was_said_before_is_said_again(tiny, tiny_folder, capfd):
    from transformers import BertModel
    from transformers.utils import logging

    tiny("bert")
    level = logging.get_verbosity()
    with quiet():
        BertModel.from_pretrained(str(tiny_folder / "bert"))  # its head is left over
    assert "".join(capfd.readouterr()) == ""
    assert logging.get_verbosity() == level


def test_the_cache_has_the_name_that_the_models_give_it(tiny):
    for name in ("llama", "gpt2"):
        encoder = tiny(name).encoder
        (argument,) = set(make_cache_arguments(encoder, None)) - {"use_cache"}
        assert argument in inspect.signature(encoder.forward).parameters

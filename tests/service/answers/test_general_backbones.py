"""Architectures that no entry names: admitted by laws, tuned by every method that fits, asked in one batch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from closeness import assert_close
from rapt.errors import TuningError, UsageError, VocabularyError
from rapt.service.adapter.adapter import load_adapter, save_adapter
from rapt.service.adapter.adapter_check import check_method, list_methods
from rapt.service.adapter.methods import METHODS
from rapt.service.adapter.methods.lora import _list_sizes
from rapt.service.answers.decoding import DecodingBatch, RowCache, check_cached_writing
from rapt.service.answers.generation import GenerationRow
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone import general
from rapt.service.backbone.injection import compute_keys_and_values
from rapt.service.backbone.opening import load_backbone
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from tiny_backbones import FAMILIES, TINY, model_type_of, write_family, write_tiny_model
from tuning_material import check_recomputed_gradient, few_words_file, tune_stop_and_resume

# Older versions of transformers compile a part of DeBERTa by a way that torch has left.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# Its positions are slopes that are counted from a mask of the whole sequence, which a row of a mixed batch has not.
NOT_WRITTEN = ("bloom",)
SERVED = [family for family in FAMILIES if family not in NOT_WRITTEN]


@pytest.fixture(scope="module", params=SERVED)
def backbone(request, tmp_path_factory):
    folder = write_family(request.param, tmp_path_factory.mktemp("family") / request.param)
    return load_backbone(str(folder), precision="float32", device="cpu")


def file_of(backbone):
    return few_words_file(backbone, targets=backbone.kind != "encoder")


def tasks_by_method(backbone):
    """A task for each method that fits; from one family to the next, each method moves on to its next task."""
    offered = ["classification", "label_words", *(["generation"] if backbone.kind != "encoder" else [])]
    first = SERVED.index(backbone.model)
    for place, method in enumerate(list_methods(backbone)):
        tasks = [task for task in offered if task in METHODS[method].tasks]
        yield method, tasks[(first + place) % len(tasks)]


def test_layers_that_are_computed_again_give_the_same_gradient(backbone):
    file = file_of(backbone)
    for method, task in tasks_by_method(backbone):
        config = replace(
            make_default_config(method), task=task, label_words=("good", "bad") if task == "label_words" else ()
        )
        if METHODS[method].prompt or METHODS[method].options:
            check_recomputed_gradient(backbone, file, config=replace(config, prompt_length=2, epochs=1))


def test_every_method_that_fits_tunes_resumes_is_saved_and_shares_a_batch(backbone, tmp_path):
    file, adapters = file_of(backbone), []
    assert backbone.language_head is not None
    assert ("prefix_tuning" in list_methods(backbone)) == (backbone.model not in ("deberta-v2", "mpnet"))
    for method, task in tasks_by_method(backbone):
        words = ("good", "bad") if task == "label_words" else ()
        config = replace(
            make_default_config(method), task=task, label_words=words, prompt_length=2, epochs=4, batch_size=8
        )
        resumed, _ = tune_stop_and_resume(backbone, file, config=config)
        save_adapter(resumed, tmp_path / method)
        adapters.append(load_adapter(tmp_path / method, backbone=backbone))
    choose = [adapter for adapter in adapters if adapter.card.task != "generation"]
    rows = [
        ClassificationRow(adapter=adapter, token_ids=record.token_ids)
        for record in file.records[:3]
        for adapter in choose
    ]
    for row, together in zip(rows, classify(backbone, rows), strict=True):
        assert_close(torch.tensor(together), torch.tensor(classify(backbone, [row])[0]), of=backbone)
    if backbone.kind != "encoder":
        write = [adapter for adapter in adapters if adapter.card.task == "generation"]
        check_rows_write_the_same_alone_and_among_others(backbone, [*write, None])


def check_rows_write_the_same_alone_and_among_others(backbone, adapters):
    """Rows that join one after the other, with adapters of their own."""
    check_cached_writing(backbone)
    rows = [
        GenerationRow(token_ids=record.token_ids, adapter=adapter, most_tokens=4)
        for record in file_of(backbone).records[:2]
        for adapter in adapters
    ]

    def written(chosen):
        batch, found = DecodingBatch(backbone), []
        for row in chosen:
            for own, choice in zip(found, batch.step() if found else (), strict=True):
                own.append(choice.token_id)
            found += [[choice.token_id] for choice in batch.join([row])]
        for _ in range(3):
            for own, choice in zip(found, batch.step(), strict=True):
                own.append(choice.token_id)
        return found

    for row, together in zip(rows, written(rows), strict=True):
        assert written([row])[0] == together[:4]


def test_a_decoder_whose_positions_need_the_whole_sequence_is_not_served(tmp_path):
    backbone = load_backbone(str(write_family("bloom", tmp_path / "bloom")), precision="float32")
    with pytest.raises(UsageError, match="keys and values are kept") as refused:
        check_cached_writing(backbone)
    assert str(refused.value).count("\n") == 0


def test_words_are_scored_and_second_texts_marked_as_the_model_itself_does(backbone):
    """By the library's own classes, from ids, on a pair of which the last word is the mask of an encoder."""
    auto = {"encoder": AutoModelForMaskedLM, "decoder": AutoModelForCausalLM, "encoder-decoder": AutoModelForSeq2SeqLM}
    theirs = auto[backbone.kind].from_pretrained(
        backbone.encoder.config._name_or_path, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor([[*backbone.bundle.eligible[:5].tolist(), backbone.frame.mask_id or 9]])
    mask, places = torch.ones_like(ids), torch.arange(6)[None]
    more = {}
    vectors = backbone.embed(ids)
    if backbone.segment_shift is not None:
        more["token_type_ids"] = (places > 2).long()
        vectors = vectors + (places > 2)[:, :, None] * backbone.segment_shift
    states = backbone.encode(vectors, attention_mask=mask, position_ids=places)
    if backbone.kind == "encoder-decoder":
        more["decoder_input_ids"] = ids[:, 1:4]
        states = backbone.decode(ids[:, 1:4], encoder_states=states, encoder_mask=mask)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, **more).logits
    assert_close(backbone.word_logits(states), wanted, of=backbone)


@pytest.mark.parametrize("law", ["padding must change no state", "a gradient must reach", "attention layers"])
def test_each_law_can_be_broken(law, tmp_path, monkeypatch):
    broken = {"padding": "_is_blind_to_padding", "a gradient": "_passes_gradients", "attention": "_takes_a_prefix"}
    folder = write_family("qwen2", tmp_path / "qwen2")
    name = next(name for start, name in broken.items() if law.startswith(start))
    encode = general._encode
    if name == "_is_blind_to_padding":
        monkeypatch.setattr(
            general, "_encode", lambda *of, before=0, after=0: encode(*of, before=before, after=after) + after
        )
    else:
        monkeypatch.setattr(general, name, lambda backbone, loaded: False)
    with pytest.raises(UsageError, match=law):
        load_backbone.__wrapped__(str(folder), precision="float32")


def rewrite_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_table_that_the_model_does_not_read_is_refused(tmp_path):
    folder = write_family("qwen2", tmp_path / "qwen2")
    other = {"shared.weight": torch.randn(load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape)}
    with pytest.raises(UsageError, match="must be the one that it reads"):
        load_backbone(rewrite_weights(folder, lambda tensors: tensors.update(other)), precision="float32")


def lose_a_layer(tensors):
    for name in [name for name in tensors if re.search(r"(layers?|block|h)\.1\.", name)]:
        del tensors[name]


@pytest.mark.parametrize("family", ["bert", "t5", "llama", "gpt2", "qwen2"])
def test_a_model_of_which_a_layer_is_missing_is_refused_and_not_filled_up(family, tmp_path):
    folder = (write_tiny_model if family in TINY else write_family)(family, tmp_path / family)
    with pytest.raises(VocabularyError, match=r"must have all weights of its architecture '\w+', got \d+ too few"):
        load_backbone(rewrite_weights(folder, lose_a_layer), precision="float32")


@pytest.mark.parametrize(
    ("family", "weight"),
    [
        ("qwen2", "model.norm.weight"),
        ("llama", "model.norm.weight"),
        ("bert", "cls.predictions.transform.dense.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(family, weight, tmp_path):
    folder = (write_tiny_model if family in TINY else write_family)(family, tmp_path / family)
    with pytest.raises(VocabularyError, match="must have finite weights, got 1 tensors"):
        load_backbone(rewrite_weights(folder, lambda tensors: tensors[weight].fill_(torch.nan)), precision="float32")


def test_an_encoder_without_a_head_of_words_classifies_and_refuses_label_words(tmp_path):
    folder = write_family("mpnet", tmp_path / "mpnet")

    def behead(tensors):
        for name in [name for name in tensors if name.startswith("lm_head.")]:
            del tensors[name]

    backbone = load_backbone(rewrite_weights(folder, behead), precision="float32")
    assert backbone.language_head is None
    config = replace(make_default_config("prompt_tuning"), task="label_words", label_words=("good", "bad"), epochs=1)
    with pytest.raises(UsageError, match="language head"):
        tune(backbone, file_of(backbone), config=config)


def test_layers_that_share_their_weights_are_one_site_of_a_prefix(tmp_path):
    backbone = load_backbone(str(write_family("albert", tmp_path / "albert")), precision="float32")
    assert backbone.encoder.config.num_hidden_layers == 2
    assert len(backbone.sites.attention) == 1
    assert compute_keys_and_values(backbone.sites, torch.tensor([5, 6, 7])).shape == (1, 2, 4, 3, 8)


def test_lora_finds_the_layers_of_attention_by_their_place_where_their_names_are_unknown(tmp_path):
    backbone = load_backbone(str(write_family("qwen2", tmp_path / "qwen2")), precision="float32")
    settings, sites = make_default_config("lora"), backbone.sites
    named = _list_sizes(backbone, settings)
    assert {name.rsplit(".")[-1] for name in named} == {"q_proj", "v_proj"}
    strange = {name.replace("_proj", "_x"): size for name, size in sites.linear.items()}
    found = _list_sizes(replace(backbone, sites=replace(sites, linear=strange)), settings)
    assert set(found) == {name for name in strange if "self_attn" in name}
    nowhere = _list_sizes(replace(backbone, sites=replace(sites, linear=strange, attention=())), settings)
    assert set(nowhere.values()) == {(32, 32)}


def test_a_decoder_whose_cache_lies_is_not_served(tmp_path, monkeypatch):
    backbone = load_backbone(str(write_family("qwen3", tmp_path / "qwen3")), precision="float32")
    check_cached_writing(backbone)
    monkeypatch.setattr(RowCache, "update", lambda self, keys, values, layer, **extras: (keys, values))
    with pytest.raises(UsageError, match="keys and values are kept"):
        check_cached_writing(backbone)


def test_unknown_code_of_a_model_is_never_run(tmp_path):
    folder = write_family("qwen2", tmp_path / "qwen2")
    config = (folder / "config.json").read_text().replace('"qwen2"', '"made_up"')
    (folder / "config.json").write_text(config)
    with pytest.raises(UsageError, match="made_up"):
        load_backbone(str(folder))


def test_a_prefix_is_refused_where_attention_is_computed_otherwise(tmp_path):
    backbone = load_backbone(str(write_family("deberta-v2", tmp_path / "deberta")), precision="float32")
    with pytest.raises(TuningError, match="prompt_tuning"):
        check_method("prefix_tuning", backbone=backbone)


def test_a_service_proves_what_its_decoders_write_before_it_starts(tmp_path):
    folder = write_family("smollm3", tmp_path / "smollm3")
    assert set(load_backbones(load_settings({"models": str(folder), "precision": "float32"}))) == {"smollm3"}


def test_the_page_of_models_names_the_families_of_the_tests_and_no_other():
    page = Path(__file__).parents[3] / "docs" / "models.md"
    families = page.read_text().partition("## Families")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in families.splitlines() if line.startswith("| ") and "`" in line]
    rows = [row for row in rows if "---" not in row[1] and row[1].strip() != "family"]
    types = sorted(row[2].strip(" `") for row in rows)
    assert len(rows) == 27
    assert types == sorted(model_type_of(name) for name in (TINY | FAMILIES).keys() - {"llama"})
    assert [row[2].strip(" `") for row in rows if "refused" in row[3]] == list(NOT_WRITTEN)

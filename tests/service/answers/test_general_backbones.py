"""Architectures that no entry names: admitted by laws, tuned by every method that fits, asked in one batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

import tokenizer_zoo
from closeness import assert_close
from rapt.errors import TuningError, UsageError
from rapt.service.adapter.adapter import load_adapter, save_adapter
from rapt.service.adapter.adapter_check import check_method, list_methods
from rapt.service.answers.decoding import DecodingBatch, RowCache, check_cached_writing
from rapt.service.answers.generation import GenerationRow
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone import general
from rapt.service.backbone.backbone import load_backbone
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.service.tuning.tuner import TuningCancelled, tune
from rapt.service.tuning.tuning_config import default_config
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tiny_backbones import FAMILIES, write_family
from tuning_material import manifest_for

# Older versions of transformers compile a part of DeBERTa by a way that torch has left.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

REFUSED = {"gemma2": "language head", "electra-narrow": "as wide as its states"}
SERVED = [family for family in FAMILIES if family not in REFUSED]


@pytest.fixture(scope="module", params=SERVED)
def backbone(request, tmp_path_factory):
    folder = write_family(request.param, tmp_path_factory.mktemp("family") / request.param)
    return load_backbone(str(folder), precision="float32", device="cpu")


def records_of(backbone):
    ids = backbone.bundle.eligible.tolist()
    return tuple(
        PrivatizedRecord(token_ids=tuple(ids[5 + 10 * (place % 2) : 8 + 10 * (place % 2) + place % 3]), label=place % 2)
        for place in range(8)
    )


def file_of(backbone):
    records = records_of(backbone)
    return PrivatizedFile(manifest=seal_manifest(manifest_for(backbone), records), records=records)


def test_every_method_that_fits_tunes_resumes_is_saved_and_shares_a_batch(backbone, tmp_path):
    file, adapters = file_of(backbone), []
    assert ("prefix_tuning" in list_methods(backbone)) == bool(backbone.sites.attention)
    for method in list_methods(backbone):
        config = replace(default_config(method), prompt_length=2, epochs=4, batch_size=8)
        steps, kept = [], []
        tune(backbone, file, config=config, on_progress=steps.append)
        assert steps[-1].losses["train_loss"] < steps[0].losses["train_loss"]
        with pytest.raises(TuningCancelled):
            tune(
                backbone,
                file,
                config=config,
                should_stop=iter([False, False, True]).__next__,
                on_run_state=lambda *handed, kept=kept: kept.append(handed[0]),
            )
        resumed = tune(backbone, file, config=config, resume_from=kept[-1])
        save_adapter(resumed, tmp_path / method)
        adapters.append(load_adapter(tmp_path / method, backbone=backbone))
        torch.testing.assert_close(
            adapters[-1].head_weight, tune(backbone, file, config=config).head_weight, atol=0, rtol=0
        )
    rows = [
        ClassificationRow(adapter=adapter, token_ids=record.token_ids)
        for record in file.records[:3]
        for adapter in (*adapters, None)
    ]
    for row, together in zip(rows, classify(backbone, rows), strict=True):
        assert_close(torch.tensor(together), torch.tensor(classify(backbone, [row])[0]), of=backbone)


def test_a_decoder_writes_the_same_alone_and_among_others(backbone):
    if backbone.kind != "decoder":
        with pytest.raises(UsageError, match="language head"):
            backbone.require_language_head()
        return
    check_cached_writing(backbone)
    rows = [GenerationRow(token_ids=record.token_ids, most_tokens=4) for record in records_of(backbone)[:3]]

    def written(chosen):
        batch = DecodingBatch(backbone)
        found = [[choice.token_id] for choice in batch.join(chosen)]
        for _ in range(3):
            for own, choice in zip(found, batch.step(), strict=True):
                own.append(choice.token_id)
        return found

    assert written(rows) == [written([row])[0] for row in rows]


@pytest.mark.parametrize(("family", "law"), REFUSED.items())
def test_a_model_that_breaks_a_law_is_refused_with_the_law(family, law, tmp_path):
    with pytest.raises(UsageError, match=law) as refused:
        load_backbone(str(write_family(family, tmp_path / family)), precision="float32")
    assert str(refused.value).count("\n") == 0


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


def test_a_multilingual_t5_is_a_t5(tmp_path):
    folder = tokenizer_zoo.t5(tmp_path / "mt5")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    theirs = MT5ForConditionalGeneration(MT5Config(vocab_size=tokenizer_zoo.rows_of(folder), **sizes)).eval()
    theirs.save_pretrained(folder)
    ours = load_backbone(str(folder), precision="float32")
    ids = torch.tensor([ours.bundle.eligible[:5].tolist()])
    mask, place = torch.ones_like(ids), torch.arange(5)[None]
    texts = ours.encode(ours.embed(ids), attention_mask=mask, position_ids=place)
    words = torch.tensor([[0, *ids[0, :2].tolist()]])
    logits = ours.word_logits(ours.decode(words, encoder_states=texts, encoder_mask=mask))
    assert_close(logits, theirs(input_ids=ids, decoder_input_ids=words).logits, of=ours)


def test_a_service_proves_what_its_decoders_write_before_it_starts(tmp_path):
    folder = write_family("smollm3", tmp_path / "smollm3")
    assert set(load_backbones(load_settings({"models": str(folder), "precision": "float32"}))) == {"smollm3"}

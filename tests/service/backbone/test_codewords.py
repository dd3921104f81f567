"""A reader puts vectors in the place of codewords, beside tokens, and meets only the backbone it was trained for."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from closeness import assert_close
from code_material import code_bundle, codes_file, codes_manifest, reader_folder
from rapt.at_home import ReaderModel
from rapt.errors import VocabularyError
from rapt.service.adapter.adapter import adapter_from_files, adapter_to_files
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.answers.prediction import ClassificationRow, Predictor, classify
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.result import Progress
from rapt.service.tuning.tuner import TuningCancelled, spell_file, tune
from rapt.service.tuning.tuning_config import ReconstructionConfig, make_default_config
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tiny_backbones import write_tiny_model
from tuning_material import manifest_for

KINDS = ("bert", "t5", "llama")


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=24, run=4)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, code, tmp_path_factory):
    """A backbone, and the same one behind a reader."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny_model(request.param, folder / "tiny")
    reader = reader_folder(folder / "tiny", folder / "reader", code=code)
    settings = {"precision": "float32", "device": "cpu"}
    return load_backbone(str(folder / "tiny"), **settings), load_backbone(
        str(reader), behind=str(folder / "tiny"), **settings
    )


def tokens_file(backbone, *, records=24):
    ids = [int(token) for token in backbone.bundle.eligible[:records]]
    made = tuple(PrivatizedRecord(token_ids=(ids[number], ids[0]), label=number % 2) for number in range(records))
    return PrivatizedFile(manifest=seal_manifest(manifest_for(backbone), made), records=made)


def test_a_code_has_the_vectors_that_the_network_makes_of_c_times_its_codeword(pair, code):
    _, behind = pair
    reader = behind.reader
    ids = reader.spell((5,), epsilon=1.4)  # nearer to 1 than to 4
    vectors = behind.embed(torch.tensor([ids]))[0]
    point = torch.from_numpy(code.codewords[0, 5].copy()) * 0.25
    hidden = torch.nn.functional.gelu(reader.network.hidden(point))
    assert_close(vectors, reader.network.output(hidden).reshape(3, -1), layers=2, width=32)
    assert len(set(ids)) == 3
    assert min(ids) >= len(behind.word_embeddings)


def test_every_codeword_of_every_book_at_every_epsilon_has_ids_of_its_own(tmp_path):
    write_tiny_model("bert", tmp_path / "tiny")
    folder = reader_folder(tmp_path / "tiny", tmp_path / "reader", code=code_bundle(codes=2, size=5, run=3))
    reader = load_backbone(str(folder), behind=str(tmp_path / "tiny"), precision="float32", device="cpu").reader
    spelled = [reader.spell((one, two), epsilon=e) for e in (1.0, 4.0) for one in range(5) for two in range(5)]
    assert len({row[:3] for row in spelled} | {row[3:] for row in spelled}) == 2 * 2 * 5
    found = reader.embed(torch.tensor(sorted({token for row in spelled for token in row})))
    assert len(found.unique(dim=0)) == 2 * 2 * 5 * 3


def test_a_gradient_of_the_task_reaches_the_prompt_through_what_the_reader_put_in(pair, code):
    _, behind = pair
    config = replace(make_default_config("prompt_tuning"), prompt_length=2)
    file = spell_file(behind, codes_file(code))
    tuning = Tuning(behind, file.manifest, config)
    tuning.losses(file.records[:4]).task.backward()
    (prompt,) = tuning.method.parameters()
    assert bool((prompt.grad.abs().sum(dim=1) > 0).all())
    assert all(one.grad is None for one in behind.reader.network.parameters())


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora", "p_tuning"])
def test_every_method_tunes_on_codes_and_is_written_and_read(pair, code, method):
    _, behind = pair
    config = replace(make_default_config(method), epochs=1, batch_size=8, prompt_length=2)
    adapter = tune(behind, codes_file(code), config=config)
    again = adapter_from_files(adapter_to_files(adapter), backbone=behind)
    rows = [ClassificationRow(adapter=one, token_ids=(3,)) for one in (adapter, again)]
    assert classify(behind, rows[:1]) == classify(behind, rows[1:])
    assert adapter.card.reader == behind.reader.hash


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_a_head_alone_behind_a_reader_is_solved(pair, code):
    _, behind = pair
    file = codes_file(code, records=12)
    undecided = tuple(replace(record, token_ids=(place // 2,)) for place, record in enumerate(file.records))
    file = PrivatizedFile(manifest=file.manifest, records=undecided)
    adapter = tune(behind, file, config=make_default_config("linear_probing"))
    row = ClassificationRow(adapter=adapter, token_ids=(3,))
    assert classify(behind, [row])[0] == pytest.approx((0.5, 0.5), abs=0.01)
    assert "penalty" in adapter.card.metrics
    assert list_methods(behind)[0] == "prompt_tuning"


def test_pairs_of_codes_are_tuned_on(pair, code):
    _, behind = pair
    file = codes_file(code, pairs=True)
    adapter = tune(behind, file, config=replace(make_default_config("prompt_tuning"), epochs=1, prompt_length=2))
    row = ClassificationRow(adapter=adapter, token_ids=(1,), second_token_ids=(2,))
    assert sum(classify(behind, [row])[0]) == pytest.approx(1)


def test_rows_of_codes_and_of_tokens_share_a_pass_and_answer_as_they_do_alone(pair, code):
    plain, behind = pair
    config = replace(make_default_config("prompt_tuning"), epochs=1, prompt_length=3)
    of_tokens = tune(plain, tokens_file(plain), config=config)
    of_codes = [tune(behind, codes_file(code), config=replace(config, seed=seed)) for seed in (0, 1)]
    tokens = tuple(int(token) for token in plain.bundle.eligible[:4])
    rows = [
        ClassificationRow(adapter=of_codes[0], token_ids=(3,)),
        ClassificationRow(adapter=of_tokens, token_ids=tokens),
        ClassificationRow(adapter=of_codes[1], token_ids=(3,)),
    ]
    together = classify(behind, rows)
    alone = [classify(behind, rows[:1])[0], classify(plain, rows[1:2])[0], classify(behind, rows[2:])[0]]
    for found, wanted in zip(together, alone, strict=True):
        assert_close(torch.tensor(found), torch.tensor(wanted), of=plain)
    assert together[0] != together[2]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("pair", ["bert"], indirect=True)
def test_at_home_the_reader_takes_the_clear_code_for_a_codeword(pair, code, pairs):
    _, behind = pair
    config = replace(make_default_config("prompt_tuning"), epochs=1, prompt_length=2)
    adapter = tune(behind, codes_file(code, pairs=pairs), config=config)
    states = code.center + code.codewords[0] @ np.linalg.pinv(code.directions).T  # whose codes are the codewords
    encoder = SimpleNamespace(encode=lambda texts, first_position: states[[int(text) for text in texts]])
    model = ReaderModel(adapter=adapter, backbone=behind, code=code, encoder=encoder)
    found = model.answer(["3", "7"], ["5", "1"] if pairs else None, first_position=0)
    others = ((5,), (1,)) if pairs else (None, None)
    rows = [
        ClassificationRow(adapter=adapter, token_ids=one, second_token_ids=two)
        for one, two in zip(((3,), (7,)), others, strict=True)
    ]
    assert_close(torch.from_numpy(found).float(), classify(behind, rows), of=behind)


def test_plain_texts_are_released_as_the_mechanism_releases(pair, code):
    _, behind = pair
    reader, setting, draws = behind.reader, codes_manifest(epsilon=2.0, preferred=6, codewords=24).mechanism, 2000
    rng = np.random.default_rng(8)
    drawn = [reader.draw_plain(setting, rng=rng) for _ in range(draws)]
    assert {text for text, _ in drawn} == set(range(4))
    near = (reader.points @ reader.plain.T).topk(6, dim=0).indices.T.tolist()
    hits = sum(ids[0] in near[text] for text, ids in drawn)
    chance = 6 * np.exp(2) / (6 * np.exp(2) + 18)
    assert abs(hits - draws * chance) < 5 * np.sqrt(draws * chance * (1 - chance))


def test_reconstruction_teaches_the_prompt_which_plain_text_a_code_is_of(pair, code):
    _, behind = pair
    file = spell_file(behind, codes_file(code))
    config = replace(make_default_config("prompt_tuning"), prompt_length=2, reconstruction=ReconstructionConfig())
    tuning = Tuning(behind, file.manifest, config)
    losses = tuning.losses(file.records[:4], draws=[(0, place) for place in range(4)])
    losses.reconstruction.backward()
    (prompt,) = tuning.method.parameters()
    assert bool((prompt.grad.abs().sum(dim=1) > 0).all())
    assert tuning.reconstruction_head.w1.weight.shape[0] == len(behind.reader.plain)
    again = tuning.losses(file.records[:4], draws=[(0, place) for place in range(4)])
    assert again.reconstruction == losses.reconstruction
    assert tuning.losses(file.records[:4]).reconstruction is None  # what is validated is the task


def test_tenants_of_tokens_and_of_codes_wait_in_one_line_for_one_backbone(pair, code):
    plain, behind = pair
    config = replace(make_default_config("prompt_tuning"), epochs=1, prompt_length=2)
    tokens = ClassificationRow(
        adapter=tune(plain, tokens_file(plain), config=config), token_ids=(int(plain.bundle.eligible[0]),)
    )
    codes = ClassificationRow(adapter=tune(behind, codes_file(code), config=config), token_ids=(3,))
    first = Predictor(behind)
    second = Predictor(plain, beside=first)
    try:
        found = [
            one.submit([row], tenant=tenant).future.result(timeout=60)[0]
            for one, row, tenant in ((second, tokens, "a"), (first, codes, "b"))
        ]
        second.close()  # leaves the line to the other
        assert first.submit([codes], tenant="b").future.result(timeout=60)[0] == found[1]
    finally:
        first.close()
    assert_close(found, [classify(plain, [tokens])[0], classify(behind, [codes])[0]], of=plain)


def test_a_run_on_codes_goes_on_to_the_same_bits(pair, code):
    _, behind = pair
    config = replace(
        make_default_config("prompt_tuning"),
        epochs=2,
        batch_size=8,
        prompt_length=2,
        reconstruction=ReconstructionConfig(),
    )
    whole = tune(behind, codes_file(code), config=config)
    seen: list[Progress] = []
    kept = []
    with pytest.raises(TuningCancelled):
        tune(
            behind,
            codes_file(code),
            config=config,
            on_progress=seen.append,
            should_stop=lambda: len(seen) == 4,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    resumed = tune(behind, codes_file(code), config=config, resume_from=kept[-1])
    assert torch.equal(whole.prompt, resumed.prompt)
    assert torch.equal(whole.head_weight, resumed.head_weight)


def test_a_reader_for_another_backbone_is_refused_by_hash_in_one_line(code, tmp_path):
    write_tiny_model("bert", tmp_path / "tiny")
    folder = reader_folder(tmp_path / "tiny", tmp_path / "reader", code=code)
    write_tiny_model("gpt2", tmp_path / "other")
    with pytest.raises(VocabularyError, match="another for 'tiny'; take that backbone"):
        load_backbone(str(folder), behind=str(tmp_path / "other"))
    with pytest.raises(VocabularyError, match="must have its backbone on this machine"):
        load_backbone(str(folder))


def test_an_adapter_of_another_reader_or_of_none_is_refused(pair, code):
    _, behind = pair
    config = replace(make_default_config("prompt_tuning"), epochs=1, prompt_length=2)
    files = adapter_to_files(tune(behind, codes_file(code), config=config))
    other = replace(behind, reader=replace(behind.reader, hash="sha256:" + "0" * 64))
    with pytest.raises(VocabularyError, match="the reader it was tuned behind"):
        adapter_from_files(files, backbone=other)

"""The head over codes is the optimum of its loss, holds back as far as noise asks for, and undoes randomized labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from code_material import ENCODER_HASH, code_bundle, code_parts, codes_manifest
from rapt.at_home import load_code_model
from rapt.errors import TuningError, VocabularyError
from rapt.local.codes.subset import make_subset
from rapt.service.adapter.adapter import adapter_from_files, adapter_to_files
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning import code_head, head_solver
from rapt.service.tuning.code_head import measure_apart, tune_code_head
from rapt.service.tuning.head_solver import solve_head
from rapt.service.tuning.tasks import label_losses
from rapt.service.tuning.tuner import TuningCancelled, tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.teaching import estimate_attenuation, fit_to_chances, sharpen_head
from rapt.wire.code_bundle import make_code_bundle, project_states, split_into_units, write_code_bundle
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from rapt.wire.public_states import PUBLIC_STATES

CONFIG = make_default_config("linear_probing")


class WrittenStates:
    """An encoder whose texts are their states, written out."""

    model, hash, max_tokens = "tiny-encoder", ENCODER_HASH, 16

    def encode(self, texts, *, first_position=0):
        return np.array([text.split() for text in texts], np.float32)


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=64, run=4)


@pytest.fixture(scope="module")
def backbone(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("code") / "bundle"
    write_code_bundle(code, folder)
    return load_backbone(str(folder))


def crowd(code, *, texts, slope, label_privacy=None, seed=0):
    """Texts whose labels follow a logistic law of their codes, and the law's weights."""
    rng = np.random.default_rng(seed)
    truth = slope * np.array([1.0, -0.5, 0.0, 0.25])
    ids = rng.integers(code.size, size=texts)
    labels = rng.random(texts) < 1 / (1 + np.exp(-code.codewords[0, ids] @ truth))
    if label_privacy is not None:
        labels = np.where(rng.random(texts) < 1 / (1 + np.exp(label_privacy.epsilon)), ~labels, labels)
    manifest = replace(codes_manifest(codewords=code.size, label_privacy=label_privacy), vocabulary_hash=code.hash)
    records = tuple(
        PrivatizedRecord(token_ids=(int(one),), label=int(label)) for one, label in zip(ids, labels, strict=True)
    )
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records), truth


def slopes(adapter):
    return (adapter.head_weight[1] - adapter.head_weight[0]).numpy()


@pytest.mark.parametrize("label_privacy", [None, LabelPrivacy(epsilon=1.5)])
def test_the_law_behind_the_labels_is_found_also_behind_randomized_ones(backbone, code, label_privacy):
    file, truth = crowd(code, texts=40_000, slope=4.0, label_privacy=label_privacy)
    np.testing.assert_allclose(slopes(tune_code_head(backbone, file, config=CONFIG)), truth, atol=0.35)


@pytest.mark.parametrize("width", [3, 30])  # a head of few numbers is solved by Newton's steps, others by L-BFGS
def test_the_loss_of_the_optimum_has_no_gradient(width):
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(50, width, generator=rng, dtype=torch.float64)
    counts = torch.randint(0, 4, (50, 3), generator=rng).double()
    weight, bias = (part.requires_grad_() for part in solve_head(states, counts, penalty=0.01, label_privacy=None))
    rows, labels = counts.nonzero(as_tuple=True)
    fit = label_losses((states @ weight.T + bias)[rows], labels, label_privacy=None) @ counts[rows, labels]
    scale = ((counts.sum(1) @ states.square()).sum() / (counts.sum() * width)).sqrt()
    (fit / counts.sum() + 0.01 * (weight * scale).square().sum()).backward()
    assert max(weight.grad.abs().max().item(), bias.grad.abs().max().item()) < 1e-5


def test_a_head_is_solved_where_labels_are_told_apart_whole_and_where_nobody_has_one_of_them():
    counts = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1]]
    states = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [-2, 0]], dtype=torch.float64)
    weight, bias = solve_head(states, counts, penalty=1e-5, label_privacy=None)
    assert (states @ weight.T + bias).argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert torch.isfinite(weight).all()
    assert bias[2] < bias[:2].min() - 5


def test_a_head_that_is_asked_about_clear_codes_is_no_slave_of_the_most_frequent_label(backbone, code):
    # Nine texts of ten are of one label. Under noise that label is the best answer to all; to clear codes it is not.
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(int)
    codes = rng.standard_normal((4000, 4)) + 2.5 * np.array([[1, 0, 0, 0], [-1, 1, 0, 0]])[labels]
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    mechanism = make_subset(code, epsilon=1.0)
    records = tuple(
        PrivatizedRecord(token_ids=(int(one),), label=int(label))
        for one, label in zip(mechanism.privatize(codes, rng=rng)[:, 0], labels, strict=True)
    )
    manifest = replace(codes_manifest(codewords=code.size), vocabulary_hash=code.hash, mechanism=mechanism.setting)
    file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
    made = adapter_from_files(adapter_to_files(tune_code_head(backbone, file, config=CONFIG)), backbone=backbone)
    np.testing.assert_allclose(made.label_shares, [0.9, 0.1], atol=0.02)
    head = made.head_weight.double().numpy(), made.head_bias.double().numpy()
    kept = mechanism.measure_attenuation(codes[:300])
    sharp = sharpen_head(*head, shares=made.label_shares.double().numpy(), attenuation=kept)
    found = [(codes @ weight.T + bias).argmax(axis=1) for weight, bias in (head, sharp)]
    right = [np.mean(one[labels == 1] == 1) for one in found]
    assert right[0] < 0.1
    assert right[1] > 0.8
    assert np.mean(found[1] == labels) > 0.95
    unchanged = sharpen_head(*head, shares=np.array([0.9, 0.1]), attenuation=1.0)
    assert all(np.allclose(one, two) for one, two in zip(head, unchanged, strict=True))


def test_a_head_is_taught_the_rest_of_a_state_by_public_text_and_is_asked_about_it_at_home(tmp_path):
    """What tells the labels apart stands in ten numbers of a state, and the code has four: public text shows both."""
    rng, encoder = np.random.default_rng(1), WrittenStates()
    parts = code_parts(width=12, size=256, run=4) | {"center": np.zeros(12, np.float32)}
    code = make_code_bundle(**parts | {"directions": np.eye(4, 12, dtype=np.float32)})

    def draw(count):
        labels = np.arange(count) % 2
        signs = (2 * labels - 1)[:, None] * np.array([1.0] * 10 + [0.0] * 2)
        return (signs + 2.0 * rng.standard_normal((count, 12))).astype(np.float32), labels

    (public, _), (given, labels), (asked, truth) = (draw(count) for count in (3000, 3000, 4000))
    mechanism, right = make_subset(code, epsilon=4.0), {}
    moved = given + np.float32(4) * np.eye(12, dtype=np.float32)[3]  # texts of another kind than the public ones
    ids, elsewhere = (mechanism.privatize(project_states(states, code), rng=rng)[:, 0] for states in (given, moved))
    for name, beside in (("taught", public), ("plain", None)):
        write_code_bundle(code, tmp_path / name, public_states=beside)
        backbone = load_backbone(str(tmp_path / name))
        records = tuple(
            PrivatizedRecord(token_ids=(int(one),), label=int(label)) for one, label in zip(ids, labels, strict=True)
        )
        manifest = replace(codes_manifest(codewords=256), vocabulary_hash=code.hash, mechanism=mechanism.setting)
        file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
        files = adapter_to_files(tune_code_head(backbone, file, config=CONFIG))
        others = tuple(replace(one, token_ids=(int(id),)) for one, id in zip(records, elsewhere, strict=True))
        of_other_kind = PrivatizedFile(manifest=seal_manifest(manifest, others), records=others)
        assert measure_apart(code, file) < 0.2
        assert measure_apart(code, of_other_kind) > 0.6
        said = []
        assert tune_code_head(backbone, of_other_kind, config=CONFIG, on_warning=said.append).taught is None
        assert ["no second head was taught" in message for message in said] == ([] if beside is None else [True])
        again = adapter_from_files(files, backbone=backbone)
        assert (again.taught is None) == (beside is None)
        home = load_code_model(files, code=code, encoder=encoder)
        odds = home.answer([" ".join(map(str, row)) for row in asked], None, first_position=0)
        right[name] = np.mean(odds.argmax(axis=1) == truth)
        # A codeword is read by the same head, whether the other one is there or not.
        assert len(classify(backbone, [ClassificationRow(adapter=again, token_ids=(int(ids[0]),))])[0]) == 2
    # Φ(√4 / 2) = 84.1 % is the most that four of these numbers tell, and ten tell 94.3 %.
    assert right["plain"] < 0.85
    assert right["taught"] > right["plain"] + 0.01


def test_a_taught_head_has_the_lowest_loss_on_the_chances_it_is_fitted_to():
    rng = np.random.default_rng(0)
    states = (rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 3).astype(np.float32)
    logits = states @ rng.standard_normal((6, 3))
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    head = [torch.from_numpy(part).requires_grad_() for part in fit_to_chances(states, chances)]
    values = torch.from_numpy(states).double()
    scale = (values - values.mean(dim=0)).square().mean().sqrt()
    said = (values @ head[0].T + head[1]).log_softmax(dim=1)
    (-(torch.from_numpy(chances) * said).sum() / len(states) + 0.05 * (head[0] * scale).square().sum()).backward()
    assert (head[0].grad / scale).abs().max() < 1e-3
    assert head[1].grad.abs().max() < 1e-3


@pytest.mark.parametrize("codes", [1, 2])
def test_the_attenuation_of_a_setting_is_that_of_its_mechanism(codes):
    bundle = code_bundle(codes=codes, size=64, run=4)
    mechanism = make_subset(bundle, epsilon=3.0)
    drawn = split_into_units(np.random.default_rng(0).standard_normal((256, bundle.width)), codes_of_a_text=codes)
    measured = mechanism.measure_attenuation(drawn.reshape(256, -1))
    assert estimate_attenuation(bundle, mechanism.setting) == pytest.approx(measured)


def test_public_states_that_do_not_belong_to_their_code_are_refused(code, tmp_path):
    states = np.zeros((3, 6), np.float32)
    write_code_bundle(code, tmp_path / "good", public_states=states)
    content = (tmp_path / "good" / PUBLIC_STATES).read_bytes()
    stated = {"encoder_hash": ENCODER_HASH}
    bad = (
        content.replace(b"cd" * 32, b"ce" * 32),
        content[:-1],
        save({"states": np.zeros((3, 5), np.float16)}, metadata=stated),
        save({"states": np.zeros((3, 6), np.float32)}, metadata=stated),
        save({"states": np.full((3, 6), np.nan, np.float16)}, metadata=stated),
        save({"states": np.zeros((8001, 6), np.float16)}, metadata=stated),
        save({"others": np.zeros((3, 6), np.float16)}, metadata=stated),
        b"",
    )
    for number, written in enumerate(bad):
        write_code_bundle(code, folder := tmp_path / str(number))
        (folder / PUBLIC_STATES).write_bytes(written)
        with pytest.raises(VocabularyError, match=PUBLIC_STATES):
            load_backbone(str(folder))
    with pytest.raises(VocabularyError, match="must be finite numbers of float16"):
        write_code_bundle(code, tmp_path / "large", public_states=states + 1e6)
    assert not (tmp_path / "large").exists()


def test_labels_that_codes_say_nothing_of_are_held_back_more_than_those_they_tell(backbone, code):
    def penalty(slope, texts):
        file, _ = crowd(code, texts=texts, slope=slope)
        return tune_code_head(backbone, file, config=CONFIG).card.metrics["penalty"]

    assert penalty(0.0, 200) > 0.1
    assert penalty(6.0, 2000) < 0.01


@pytest.mark.parametrize("label_privacy", [None, LabelPrivacy(epsilon=2.0)])
def test_a_head_on_several_codewords_a_text_is_that_of_their_states_laid_out(tmp_path, monkeypatch, label_privacy):
    code = code_bundle(codes=3, size=8, run=4)
    write_code_bundle(code, tmp_path / "codes")
    backbone, rng = load_backbone(str(tmp_path / "codes")), np.random.default_rng(3)
    ids, drawn = rng.integers(8, size=(200, 3)), rng.random(200)
    manifest = codes_manifest(codewords=8, codes=3, labels=("a", "b", "c"), label_privacy=label_privacy)
    records = tuple(
        PrivatizedRecord(token_ids=tuple(each), label=0 if draw < 0.2 else each[0] // 3)
        for each, draw in zip(ids.tolist(), drawn, strict=True)
    )
    sealed = seal_manifest(replace(manifest, vocabulary_hash=code.hash), records)
    file = PrivatizedFile(manifest=sealed, records=records)
    monkeypatch.setattr(code_head, "_SUMMED", 150)
    monkeypatch.setattr(head_solver, "PENALTIES", head_solver.PENALTIES[::4])  # each asks for five heads of both kinds
    summed = tune_code_head(backbone, file, config=CONFIG)
    with monkeypatch.context() as patched:
        patched.setattr(code_head, "_sum_up", lambda backbone, training: None)
        laid_out = tune_code_head(backbone, file, config=CONFIG)
    for name in ("head_weight", "head_bias", "label_shares"):
        np.testing.assert_allclose(getattr(summed, name), getattr(laid_out, name), atol=1e-4)
    assert summed.card.metrics == pytest.approx(laid_out.card.metrics, rel=1e-4)
    assert summed.card.metrics["train_mean_token_accuracy"] > 0.6
    alone = PrivatizedFile(manifest=seal_manifest(sealed, records[:1]), records=records[:1])  # nothing to judge it by
    assert tune_code_head(backbone, alone, config=CONFIG).card.metrics["penalty"] == max(head_solver.PENALTIES)


def test_a_crowd_of_a_hundred_thousand_costs_what_its_codebook_costs(backbone, code):
    file, _ = crowd(code, texts=2000, slope=3.0)
    many = PrivatizedFile(manifest=seal_manifest(file.manifest, file.records * 50), records=file.records * 50)
    few, all_ = (tune_code_head(backbone, one, config=replace(CONFIG, seed=2)) for one in (file, many))
    assert all_.card.training["records"] == 100_000
    np.testing.assert_allclose(slopes(few), slopes(all_), rtol=0.3)


def test_the_tuner_hands_codes_over_and_reports_one_last_step(backbone, code):
    file, _ = crowd(code, texts=300, slope=5.0)
    validation, _ = crowd(code, texts=300, slope=5.0, seed=1)
    seen = []
    adapter = tune(backbone, file, config=CONFIG, validation=validation, on_progress=seen.append)
    assert [(step.last, step.step == step.steps) for step in seen] == [(True, True)]
    assert 0.7 < adapter.card.metrics["full_valid_mean_token_accuracy"] <= 1
    rows = [ClassificationRow(adapter=adapter, token_ids=record.token_ids) for record in validation.records]
    found = np.array(classify(backbone, rows)).argmax(axis=1)
    assert (
        np.mean(found == [record.label for record in validation.records])
        == adapter.card.metrics["full_valid_mean_token_accuracy"]
    )


def test_a_run_is_stopped_between_penalties_and_settings_of_steps_are_refused(backbone, code):
    file, _ = crowd(code, texts=300, slope=5.0)
    with pytest.raises(TuningCancelled):
        tune(backbone, file, config=CONFIG, should_stop=lambda: True)
    with pytest.raises(TuningError, match="epochs, learning_rate"):
        tune(backbone, file, config=replace(CONFIG, epochs=9, learning_rate=0.5))

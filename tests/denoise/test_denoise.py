import json

import numpy as np
import pytest
import torch

from rapt.denoise.plan import LEAST_TEXTS, WINDOW, WarmUpPlan, read_public_texts
from rapt.denoise.warm_up import Student, check_target, privatize, save_denoised, warm_up
from rapt.errors import CorpusError, UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.noise_expected import CARD, NoiseExpected
from rapt.service.backbone.opening import load_backbone

SUBJECTS = ("the film", "this book", "her song", "their play", "a long story", "the new show", "that old picture")
VERBS = ("was", "seemed", "is", "became", "will be")
ENDS = ("a great joy", "very dull", "full of life", "hard to like", "worth a visit", "far too long")
PLAN = WarmUpPlan(model="bert-tiny", etas=(85.0, 110.0), epochs=8, batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary("bert-tiny")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    path = tmp_path_factory.mktemp("public") / "public.csv"
    lines = [f"{subject} {verb} {end}" for subject in SUBJECTS for verb in VERBS for end in ENDS]
    path.write_text("text\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def texts(public, vocabulary):
    return read_public_texts([public], vocabulary=vocabulary)


@pytest.fixture(scope="module")
def trained(texts, vocabulary):
    student, steps = Student("bert-tiny"), []
    explained = warm_up(
        student, texts, vocabulary=vocabulary, plan=PLAN, on_step=lambda step, of, found: steps.append((step, of))
    )
    return student, explained, steps


def test_a_student_begins_as_its_teacher(texts):
    with torch.no_grad():
        agreement = Student("bert-tiny").measure_agreement(texts.held_out, texts.held_out)
    assert agreement.loss.item() < 1e-8


def test_a_warm_up_explains_more_of_texts_it_has_not_seen(trained):
    _, explained, steps = trained
    assert [item.eta for item in explained] == [85.0, 110.0]
    for item in explained:
        assert item.after > item.before + 0.2
    assert steps[-1] == (len(steps), len(steps))


def test_the_measure_tells_a_text_from_another(trained, texts, vocabulary):
    """The twin: privatized forms of other texts. A measure that is blind to content would not tell the two apart."""
    student, _, _ = trained
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=110.0)
    clear = [ids for ids in texts.training if len(ids) == len(texts.training[0])]
    assert len(clear) > 5
    noisy = privatize(mechanism, clear, rng=np.random.default_rng(0))
    with torch.no_grad():
        own = student.measure_agreement(clear, noisy).text
        wrong = student.measure_agreement(clear, [*noisy[1:], noisy[0]]).text
    assert wrong > own + 0.1


def test_the_teacher_and_the_table_of_words_stay_as_they_were(trained):
    student, _, _ = trained
    fresh = load_backbone.__wrapped__("bert-tiny", precision="float32").encoder.state_dict()
    for name, weight in student.teacher.encoder.state_dict().items():
        assert torch.equal(weight, fresh[name])
    changed = {name for name, weight in student.encoder.state_dict().items() if not torch.equal(weight, fresh[name])}
    assert changed
    assert not [name for name in changed if name.startswith("embeddings.")]


def test_the_same_plan_gives_the_same_weights(texts, vocabulary):
    plan = WarmUpPlan(model="bert-tiny", etas=(110.0,), epochs=0.2, batch_size=8)
    states = []
    for _ in range(2):
        student = Student("bert-tiny")
        warm_up(student, texts, vocabulary=vocabulary, plan=plan)
        states.append(student.encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_folder_is_a_backbone_with_the_vocabulary_of_the_original(trained, tmp_path):
    student, explained, _ = trained
    folder = tmp_path / "denoised"
    save_denoised(student, folder, plan=PLAN, explained=explained, texts=3, tokens=4)
    loaded, original = load_backbone(str(folder), precision="float32"), load_backbone("bert-tiny", precision="float32")
    assert loaded.bundle.hash == original.bundle.hash
    assert loaded.language_head is not None  # the original's head comes along
    for name, weight in student.encoder.state_dict().items():
        assert torch.equal(weight, loaded.encoder.state_dict()[name])
    ids = torch.tensor([[101, 1996, 2143, 102]])
    given = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(4)[None]}
    with torch.no_grad():
        assert not torch.allclose(
            loaded.encode(loaded.embed(ids), **given), original.encode(original.embed(ids), **given)
        )
    card = json.loads((folder / CARD).read_text())
    assert card["plan"]["etas"] == [85.0, 110.0]
    assert original.expects is None
    assert loaded.expects == NoiseExpected(mechanism="laplace", options={}, etas=(85.0, 110.0))
    assert card["explained"][0]["after"] == explained[0].after
    with pytest.raises(UsageError, match="`out` must be a new or empty folder"):
        check_target(folder)


def test_long_texts_are_cut_and_no_window_is_in_both_parts(vocabulary, tmp_path):
    path = tmp_path / "long.csv"
    words = " ".join(f"word number {place}" for place in range(3000))
    path.write_text(f"text\n{words}\n")
    found = read_public_texts([path], vocabulary=vocabulary)
    assert max(map(len, found.training + found.held_out)) == WINDOW
    assert not set(found.training) & set(found.held_out)
    assert found.held_out


def test_what_cannot_be_trained_is_refused(vocabulary, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("text\n" + "the same text again and again\n" * 100)
    with pytest.raises(CorpusError, match=f"at least {LEAST_TEXTS} different public texts of 4 tokens, got 1"):
        read_public_texts([path], vocabulary=vocabulary)
    for changes, message in (
        ({"etas": ()}, "must have an eta"),
        ({"etas": (0.0,)}, "finite and above 0"),
        ({"epochs": 0.0}, "epochs must be finite and above 0"),
        ({"batch_size": 1}, "at least 2 texts"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
    ):
        with pytest.raises(UsageError, match=message):
            WarmUpPlan(**({"model": "bert-tiny", "etas": (60.0,)} | changes))


def test_in_bfloat16_the_student_learns_the_same_and_its_weights_stay_float32(texts, vocabulary, trained):
    student = Student("bert-tiny", precision="bfloat16")
    explained = warm_up(student, texts, vocabulary=vocabulary, plan=PLAN)
    for half, full in zip(explained, trained[1], strict=True):
        assert half.after == pytest.approx(full.after, abs=0.05)
    assert {parameter.dtype for parameter in student.trained().values()} == {torch.float32}

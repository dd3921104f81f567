"""Real models: an overfitted one is found by every attack, and one that never had a text is not accused of it."""

from dataclasses import replace

import numpy as np
import pytest

from rapt.audit.artefact.membership import MembershipResult, play_membership
from rapt.audit.artefact.memory import find_canaries, mark_member_words, rare_words, read_words
from rapt.audit.artefact.workshop import TokenTexts, TrainedModels, Workshop, make_tuning_file, privatize, tune_models
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.methods import LORA, PROMPT_TUNING
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import make_default_config
from significance import ALPHA

TEXTS, MODELS, EPOCHS = 48, 5, 16


def random_texts(vocabulary, *, seed, texts=TEXTS):
    """Random words with random labels: whatever a model says of them it says by heart."""
    rng = np.random.default_rng(seed)
    return TokenTexts(
        contents=tuple(tuple(row) for row in rng.choice(vocabulary.eligible, size=(texts, 6)).tolist()),
        labels=tuple(rng.integers(2, size=texts).tolist()),
        names=("no", "yes"),
    )


@pytest.fixture(scope="module")
def workshop():
    return Workshop(
        backbone=load_backbone("bert-tiny", precision="float32", device="cpu"),
        vocabulary=load_vocabulary("bert-tiny"),
        mechanism=None,
        config=replace(make_default_config(LORA), epochs=EPOCHS, batch_size=24, learning_rate=0.005),
    )


@pytest.fixture(scope="module")
def texts(workshop):
    return random_texts(workshop.vocabulary, seed=0)


@pytest.fixture(scope="module")
def models(workshop, texts):
    return tune_models(workshop, texts, models=MODELS, seed=0)


def scores(found: MembershipResult):
    return {attack.attack: attack.score for attack in found.attacks}


def test_an_overfitted_lora_tells_who_was_in_its_training(workshop, models, texts):
    found = play_membership(workshop, models, texts, privatized=False)
    assert (found.tuned_on, found.asked_with, found.shadows) == ("clear", "clear", MODELS - 1)
    assert scores(found)["lira_online"].p < ALPHA
    assert scores(found)["lira_online"].auc.low > 0.7


def test_models_are_not_accused_of_texts_that_they_never_had(workshop, models):
    # The same models, asked about other texts, of which a coin says who is called a member.
    strangers = random_texts(workshop.vocabulary, seed=1)
    coins = np.random.default_rng(2).random(models.members.shape) < 0.5
    found = play_membership(
        workshop, TrainedModels(adapters=models.adapters, members=coins), strangers, privatized=False
    )
    assert all(score.p > ALPHA for score in scores(found).values())
    assert scores(found)["lira_online"].auc.value < 0.65


def test_words_of_the_training_are_told_from_words_of_other_texts(workshop, models, texts):
    (found,) = read_words(workshop, models, texts)  # a LoRA has no prompt to read
    assert found.reader == "asked"
    # A word is a weak trace of its text: more than a coin, and far less than the text itself.
    assert found.score.auc.low > 0.5
    assert found.score.p < 0.05


def test_words_are_not_read_that_were_never_there(workshop, models):
    strangers = random_texts(workshop.vocabulary, seed=1, texts=20)
    coins = np.random.default_rng(2).random((MODELS, 20)) < 0.5
    (found,) = read_words(workshop, TrainedModels(adapters=models.adapters, members=coins), strangers)
    assert found.score.p > ALPHA


def test_the_words_in_question_stand_in_one_text_each(workshop, texts, models):
    words = rare_words(texts, eligible=workshop.vocabulary.eligible)
    truth = mark_member_words(texts, models.members, words)
    for model, word in ((0, 0), (1, 5), (4, -1)):
        home = [place for place, content in enumerate(texts.contents) if words[word] in content]
        assert truth[model, word] == models.members[model, home[0]]
        assert len(home) == 1


def test_a_prompt_made_of_training_words_is_read(workshop, texts, models):
    # Vectors that are rows of the words themselves: what a nearest-row reading is able to see.
    words = rare_words(texts, eligible=workshop.vocabulary.eligible)
    truth = mark_member_words(texts, models.members, words)
    adapters = []
    for adapter, inside in zip(models.adapters, truth, strict=True):
        prompt = workshop.backbone.word_embeddings[words[inside].tolist()]
        adapters.append(replace(adapter, tuned=replace(adapter.tuned, prompt=prompt, lora={})))
    found = {reading.reader: reading for reading in read_words(workshop, replace(models, adapters=adapters), texts)}
    assert found["nearest"].score.p < ALPHA
    assert found["nearest"].first.value == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_canary_that_was_repeated_is_exposed_and_one_that_was_not_put_in_is_not(seed, workshop, texts):
    few = texts.at(np.arange(24))
    never, often = (find_canaries(workshop, few, repetitions=times, canaries=8, seed=seed) for times in (0, 12))
    assert often.p < ALPHA
    assert often.low > never.exposure
    assert never.p > ALPHA


@pytest.mark.slow
def test_a_prompt_is_tuned_and_read_through_a_mechanism(workshop, texts):
    noisy = replace(
        workshop,
        mechanism=make_mechanism("laplace", vocabulary=workshop.vocabulary, eta=5.0),
        config=replace(make_default_config(PROMPT_TUNING), epochs=1),
    )
    few = texts.at(np.arange(32))
    models = tune_models(noisy, few, models=3, seed=0)
    asked = play_membership(noisy, models, few, privatized=True, queries=2)
    assert (asked.tuned_on, asked.asked_with) == ("privatized", "privatized")
    assert {reading.reader for reading in read_words(noisy, models, few)} == {"nearest", "nearest_shadows", "asked"}
    # At this η hardly a token is left as it is: nothing is remembered.
    assert all(score.p > ALPHA for score in scores(asked).values())


def test_models_have_parts_of_their_own_and_fresh_noise(workshop, texts):
    mechanism = make_mechanism("laplace", vocabulary=workshop.vocabulary, eta=5.0)
    files = [
        make_tuning_file(texts, vocabulary=workshop.vocabulary, mechanism=mechanism, rng=np.random.default_rng(seed))
        for seed in (1, 2, 1)
    ]
    assert files[0].records == files[2].records != files[1].records
    clear = make_tuning_file(texts, vocabulary=workshop.vocabulary, mechanism=None, rng=np.random.default_rng(0))
    assert tuple(record.token_ids for record in clear.records) == texts.contents
    lengths = [len(content) for content in privatize(texts.contents, mechanism=mechanism, rng=np.random.default_rng(0))]
    assert lengths == texts.lengths.tolist()


def test_a_class_that_cannot_be_in_every_part_is_refused(workshop):
    texts = TokenTexts(contents=((1,), (2,), (3,)), labels=(0, 1, 2), names=("a", "b", "c"))
    with pytest.raises(AuditError, match="each of 3 classes"):
        tune_models(workshop, texts, models=2, seed=0)


def test_texts_are_not_shown_in_a_repr(texts, models):
    assert "contents" not in repr(texts)
    assert "members" not in repr(models)

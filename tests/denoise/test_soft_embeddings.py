import json
import math

import numpy as np
import pytest
import torch

from rapt.compare.plan import digest_weights
from rapt.denoise.plan import WarmUpPlan, read_public_texts
from rapt.denoise.soft_embeddings import (
    SoftEmbeddings,
    average_settings,
    count_word_prior,
    load_soft_embeddings,
    soft_embeddings,
)
from rapt.denoise.warm_up import Student, save_denoised, warm_up
from rapt.errors import UsageError, VocabularyError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.noise_expected import CARD, SOFT_EMBEDDINGS
from rapt.service.backbone.opening import load_backbone
from toy_vocabularies import toy_vocabulary


@pytest.fixture
def line():
    """Five words on a line; the last is special, so no mechanism puts it out."""
    return toy_vocabulary([[0.0], [1.0], [2.5], [4.0], [9.0]], special=(4,))


@pytest.fixture
def prior():
    return np.array([0.4, 0.3, 0.2, 0.1, 0.0])


def test_a_closed_channel_is_summed_over_as_bayes_says(line, prior, rng):
    mechanism = make_mechanism("exponential", vocabulary=line, eta=1.3)
    found = soft_embeddings(line, mechanism, prior=prior, rng=rng)
    for column, output in enumerate(line.eligible):
        joint = [
            prior[word] * math.exp(mechanism.log_probabilities(np.array([word]))[0, column])
            for word in range(line.size)
        ]
        mean = sum(share * line.embeddings[word, 0] for word, share in enumerate(joint)) / sum(joint)
        assert found.table[output, 0] == pytest.approx(mean, rel=1e-5)
        assert found.mass[output] == pytest.approx(sum(joint), rel=1e-6)
    assert found.table[4, 0] == line.embeddings[4, 0]


def test_draws_come_to_what_the_integral_says(line, prior, rng):
    """In one dimension the Laplace channel is known: P(y|x) is an integral over the cell of y."""
    eta = 1.3
    found = soft_embeddings(
        line, make_mechanism("laplace", vocabulary=line, eta=eta), prior=prior, rng=rng, draws=200_000
    )
    words = line.embeddings[:4, 0].astype(float)
    edges = np.concatenate([[-np.inf], (words[1:] + words[:-1]) / 2, [np.inf]])
    steps = edges[None, :] - words[:, None]
    below = np.where(steps < 0, 0.5 * np.exp(eta * steps), 1 - 0.5 * np.exp(-eta * steps))
    joint = prior[:4, None] * np.diff(below, axis=1)
    expected = (joint * words[:, None]).sum(axis=0) / joint.sum(axis=0)
    # Five standard errors of a mean of 10,000 numbers between 0 and 4.
    assert found.table[:4, 0] == pytest.approx(expected, abs=0.07)
    assert not np.allclose(found.table[:4, 0], words, atol=0.15)


def test_an_output_that_nobody_puts_out_keeps_its_vector(line, rng):
    prior = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    found = soft_embeddings(
        line, make_mechanism("laplace", vocabulary=line, eta=500.0), prior=prior, rng=rng, draws=100
    )
    assert np.array_equal(found.table, line.embeddings)
    assert found.mass.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_prior_knows_every_eligible_word_and_no_other(line):
    prior = count_word_prior([[0, 0, 1], [4]], vocabulary=line)
    assert prior.sum() == pytest.approx(1.0)
    assert prior[0] > prior[1] > prior[2] == prior[3] > 0
    assert count_word_prior([], vocabulary=line)[4] == 0


def test_settings_are_weighed_by_how_often_they_put_a_word_out():
    first = SoftEmbeddings(table=np.array([[1.0], [7.0]], np.float32), mass=np.array([0.75, 0.0]))
    second = SoftEmbeddings(table=np.array([[3.0], [7.0]], np.float32), mass=np.array([0.25, 0.0]))
    assert average_settings([first, second]).tolist() == [[1.5], [7.0]]


def test_a_table_is_made_once_and_a_damaged_one_again(line, prior, tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path))
    mechanism = make_mechanism("laplace", vocabulary=line, eta=1.3)
    first = load_soft_embeddings(line, mechanism, prior=prior, seed=1, draws=1000)
    (file,) = (tmp_path / "soft-embeddings").iterdir()
    stamp = file.stat().st_mtime_ns
    assert np.array_equal(load_soft_embeddings(line, mechanism, prior=prior, seed=1, draws=1000).table, first.table)
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(b"damaged")
    assert np.array_equal(load_soft_embeddings(line, mechanism, prior=prior, seed=1, draws=1000).table, first.table)
    for changed in (
        {"mechanism": make_mechanism("laplace", vocabulary=line, eta=1.4), "prior": prior},
        {"mechanism": mechanism, "prior": prior[[1, 0, 2, 3, 4]]},
    ):
        other = load_soft_embeddings(line, changed["mechanism"], prior=changed["prior"], seed=1, draws=1000)
        assert not np.array_equal(other.table, first.table)
    assert len(list((tmp_path / "soft-embeddings").iterdir())) == 3


def test_a_backbone_with_soft_embeddings_is_saved_and_served(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    public = tmp_path / "public.csv"
    public.write_text(
        "text\n" + "\n".join(f"the film of number {place} was long and dull" for place in range(80)) + "\n"
    )
    vocabulary = load_vocabulary("bert-tiny")
    texts = read_public_texts([public], vocabulary=vocabulary)
    plan = WarmUpPlan(model="bert-tiny", etas=(85.0,), epochs=0, soft_embeddings=True, batch_size=8)
    student = Student("bert-tiny")
    (explained,) = warm_up(student, texts, vocabulary=vocabulary, plan=plan, soft_draws=20_000)
    assert explained.after > explained.before
    folder = tmp_path / "soft"
    save_denoised(student, folder, plan=plan, explained=[explained], texts=1, tokens=1)
    loaded, original = load_backbone(str(folder), precision="float32"), load_backbone("bert-tiny", precision="float32")
    assert loaded.bundle.hash == original.bundle.hash
    assert np.array_equal(loaded.bundle.embeddings, original.bundle.embeddings)
    assert torch.equal(loaded.word_embeddings, student.backbone.word_embeddings)
    assert not torch.allclose(loaded.word_embeddings, original.word_embeddings)
    for name, weight in loaded.encoder.state_dict().items():
        assert torch.equal(weight, original.encoder.state_dict()[name])
    assert json.loads((folder / CARD).read_text())["plan"]["soft_embeddings"] is True
    with_table = digest_weights(str(folder))
    (folder / SOFT_EMBEDDINGS).write_bytes(b"damaged")
    with pytest.raises(VocabularyError, match="must have a finite vector for each word"):
        load_backbone.__wrapped__(str(folder), precision="float32")
    (folder / SOFT_EMBEDDINGS).unlink()
    assert digest_weights(str(folder)) != with_table


def test_nothing_is_trained_only_where_words_are_seen_anew():
    assert WarmUpPlan(model="bert-tiny", etas=(60.0,), epochs=0, soft_embeddings=True).epochs == 0
    with pytest.raises(UsageError, match="epochs must be finite and above 0"):
        WarmUpPlan(model="bert-tiny", etas=(60.0,), epochs=0)

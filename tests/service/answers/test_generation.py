import pytest
import torch

from rapt.service.answers.generation import Sampling, choose

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1])
GRID = 4000


def frequencies(sampling):
    """How often each token is chosen when the draw takes every value of a fine grid once: its exact probability."""
    draws = [(place + 0.5) / GRID for place in range(GRID)]
    choices = choose(LOGITS.expand(GRID, -1), [sampling] * GRID, draws=draws)
    return torch.bincount(torch.tensor([choice.token_id for choice in choices]), minlength=5) / GRID


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    expected = torch.softmax(LOGITS / temperature, dim=0)
    torch.testing.assert_close(frequencies(Sampling(temperature=temperature)), expected, atol=2 / GRID, rtol=0)


def test_top_p_draws_from_the_likeliest_few():
    # Likeliest first: 0.53, 0.22, 0.10, ...; up to 0.7 there are two of them.
    expected = torch.softmax(LOGITS, dim=0) * torch.tensor([0, 0, 1, 0, 1])
    found = frequencies(Sampling(top_p=0.7))
    torch.testing.assert_close(found, expected / expected.sum(), atol=2 / GRID, rtol=0)
    assert frequencies(Sampling(top_p=1e-9))[2] == 1


def test_rows_that_draw_and_rows_that_do_not_share_a_batch():
    samplings = [Sampling(temperature=0), Sampling(top_logprobs=2), Sampling(temperature=0, top_logprobs=5)]
    choices = choose(LOGITS.expand(3, -1), samplings, draws=[0.99, 0.999999, 0.99])
    logprobs = torch.log_softmax(LOGITS, dim=0)
    assert [choice.token_id for choice in choices] == [2, 1, 2]
    assert [choice.logprob for choice in choices] == pytest.approx(logprobs[[2, 1, 2]].tolist())
    assert [len(choice.top) for choice in choices] == [0, 2, 5]
    assert [token for token, _ in choices[2].top] == logprobs.argsort(descending=True).tolist()

"""The word head and its file, and the posterior that it reads: draws, means, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapt.errors import UsageError, VocabularyError
from rapt.service.model.backbone import load_backbone
from rapt.service.model.posterior import Posterior, read_posterior, text_states
from rapt.service.model.word_head import WORD_HEAD, WordHead, has_word_head, read_word_head, word_head_file
from significance import ALPHA, assert_counts
from word_head_material import untrained_head


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32")


@pytest.fixture(scope="module")
def head():
    return untrained_head("bert-tiny")


@pytest.fixture
def posterior(rng):
    """Three texts; a few words of which some are much more likely."""
    words = torch.tensor([rng.choice(50, size=4, replace=False).tolist() for _ in range(6)], dtype=torch.int32)
    probabilities = torch.from_numpy(rng.dirichlet([4.0, 2.0, 1.0, 0.5], size=6)).float().sort(descending=True).values
    return Posterior(words=words, probabilities=probabilities, arrived=probabilities[:, 1], lengths=(3, 1, 2))


def test_a_head_begins_at_what_is_known_without_context(backbone, head):
    """Half of the words are left alone, the others replaced by any word: P(arrived is true) = V / (2V - 1)."""
    states, arrived = text_states(backbone, [[2143, 2001], [6659]])
    words = len(head.table)
    found = head(states, arrived).softmax(dim=1).gather(1, arrived[:, None])
    assert found[:, 0].tolist() == pytest.approx([words / (2 * words - 1)] * 3, rel=1e-4)


def test_frequent_words_are_believed_more(backbone):
    table = torch.from_numpy(backbone.bundle.embeddings.copy())
    prior = torch.full((len(table),), -12.0)
    prior[2143] = -2.0
    head = WordHead(table, log_prior=prior, generator=torch.Generator().manual_seed(0))
    states, arrived = text_states(backbone, [[2143, 6659]])
    frequent, rare = head(states, arrived).softmax(dim=1).gather(1, arrived[:, None])[:, 0].tolist()
    assert frequent > 0.9 > 0.5 > rare


def test_a_head_is_read_as_it_was_written(backbone, head, tmp_path):
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert not has_word_head(tmp_path)
    (tmp_path / WORD_HEAD).write_bytes(word_head_file(head))
    assert has_word_head(tmp_path)
    loaded = read_word_head(tmp_path, table=torch.from_numpy(backbone.bundle.embeddings.copy()))
    states, arrived = text_states(backbone, [[2143, 2001, 6659]])
    assert torch.equal(loaded(states, arrived), head(states, arrived))
    assert not [parameter for parameter in loaded.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("damage", ["cut", "other", "infinite", "gone", "whole numbers"])
def test_a_damaged_head_is_refused(backbone, tmp_path, damage):
    table = torch.from_numpy(backbone.bundle.embeddings.copy())
    head = untrained_head("bert-tiny")
    if damage == "infinite":
        head.bias.data[7] = float("inf")
    if damage == "other":
        head = WordHead(table[:, :64], log_prior=head.bias, generator=torch.Generator())
    if damage == "gone":
        del head.copying
    if damage == "whole numbers":
        head = head.to(torch.float16)
        head.bias = torch.nn.Parameter(torch.ones(len(table), dtype=torch.int64), requires_grad=False)
    written = word_head_file(head)
    (tmp_path / WORD_HEAD).write_bytes(written[:-5] if damage == "cut" else written)
    with pytest.raises(VocabularyError, match=r"word_head\.safetensors must hold the finite weights"):
        read_word_head(tmp_path, table=table)


def test_a_folder_without_a_head_is_named_with_the_way_out(backbone, tmp_path):
    with pytest.raises(UsageError, match="got a folder without; add one with rapt word-head"):
        read_word_head(tmp_path, table=backbone.word_embeddings)


def test_texts_are_read_one_by_one_whatever_they_are_read_with(backbone, head, rng):
    texts = [rng.choice(backbone.bundle.eligible, size=length).tolist() for length in (3, 60, 1, 7, 60, 20)]
    together = read_posterior(backbone, head, texts, most=5)
    assert together.words.shape == together.probabilities.shape == (sum(map(len, texts)), 5)
    assert together.lengths == (3, 60, 1, 7, 60, 20)
    assert torch.allclose(together.probabilities.sum(dim=1), torch.ones(len(together.words)))
    start = 0
    for text in texts:
        alone = read_posterior(backbone, head, [text], most=5)
        part = slice(start, start + len(text))
        # Equal to rounding in the states, so words of one probability may change places, and these do not.
        assert torch.equal(alone.words[:, 0], together.words[part, 0])
        assert torch.allclose(alone.probabilities, together.probabilities[part], atol=1e-4)
        assert torch.allclose(alone.arrived, together.arrived[part], atol=1e-4)
        start += len(text)


def test_what_is_kept_are_the_likeliest_words_by_their_shares(backbone, head):
    text = [2143, 2001, 6659]
    found = read_posterior(backbone, head, [text], most=4)
    with torch.no_grad():
        every = head(*text_states(backbone, [text])).softmax(dim=1)
    for row, words, probabilities in zip(every, found.words, found.probabilities, strict=True):
        order = row.argsort(descending=True)[:4]
        assert words[0] == order[0]
        assert torch.allclose(probabilities, row[words] / row[words].sum(), atol=1e-6)
        assert torch.allclose(row[words], row[order], atol=1e-7)


def test_what_arrived_is_believed_by_its_share_of_all_words(backbone):
    """The twin, a share of the words that are kept, believes what arrived too much."""
    head, text = untrained_head("bert-tiny", doubtful=True), [2143, 3001, 6659]
    found = read_posterior(backbone, head, [text], most=4)
    with torch.no_grad():
        every = head(*text_states(backbone, [text])).double().softmax(dim=1)  # in float32 its sum is less exact
    expected = every[torch.arange(3), text].tolist()
    assert found.arrived.dtype == torch.float32
    assert found.arrived.tolist() == pytest.approx(expected, rel=1e-5)
    twin = (found.probabilities * (found.words == torch.tensor(text)[:, None])).sum(dim=1)
    assert twin.tolist() != pytest.approx(expected, rel=1e-2)


def test_a_word_that_is_surely_what_arrived_has_a_probability_of_1_and_not_more(backbone):
    head = untrained_head("bert-tiny")
    with torch.no_grad():
        head.copying.bias.fill_(1e4)
    assert read_posterior(backbone, head, [[2143, 6659]]).arrived.tolist() == [1.0, 1.0]


def test_a_text_that_does_not_fit_is_refused_by_its_place(backbone, head):
    with pytest.raises(UsageError, match="record 1 must fit into 512 positions"):
        read_posterior(backbone, head, [[2143], [2143] * 600])


def test_the_most_likely_words_are_the_first_of_each_position(posterior):
    first = posterior.words[:, 0].tolist()
    assert posterior.most_likely() == [tuple(first[:3]), tuple(first[3:4]), tuple(first[4:])]


def counts_of(posterior, draws):
    drawn = np.array([[word for text in version for word in text] for version in draws])
    return [[int((drawn[:, place] == word).sum()) for word in posterior.words[place]] for place in range(6)]


def assert_posterior(counts, posterior):
    """All positions together raise a false alarm with probability ALPHA at most."""
    for found, law in zip(counts, posterior.probabilities.double(), strict=True):
        assert_counts(found, law / law.sum(), alpha=ALPHA / len(counts))


def test_draws_follow_the_posterior(posterior, rng):
    draws = [posterior.draw(rng) for _ in range(4000)]
    assert {tuple(map(len, version)) for version in draws} == {(3, 1, 2)}
    assert_posterior(counts_of(posterior, draws), posterior)


@pytest.mark.parametrize("seed", range(5))
def test_the_test_of_draws_can_fail(posterior, seed):
    """The twin draws from probabilities that were flattened a little."""
    flat = posterior.probabilities**0.8
    twin = replace(posterior, probabilities=flat / flat.sum(dim=1, keepdim=True))
    rng = np.random.default_rng(seed)
    counts = counts_of(posterior, [twin.draw(rng) for _ in range(4000)])
    with pytest.raises(AssertionError, match="rejects"):
        assert_posterior(counts, posterior)


def test_positions_are_drawn_independently(rng):
    halves = torch.full((2, 2), 0.5)
    posterior = Posterior(words=torch.tensor([[1, 2]] * 2), probabilities=halves, arrived=halves[:, 0], lengths=(2,))
    draws = [posterior.draw(rng)[0] for _ in range(4000)]
    assert_counts([draws.count(pair) for pair in ((1, 1), (1, 2), (2, 1), (2, 2))], [0.25] * 4)


def test_the_same_generator_gives_the_same_draws(posterior):
    assert posterior.draw(np.random.default_rng(3)) == posterior.draw(np.random.default_rng(3))


def test_mean_vectors_are_the_sums_that_their_name_says(posterior, rng):
    table = torch.from_numpy(rng.normal(size=(50, 3))).float()
    found = posterior.mean_vectors(table)
    for place in range(6):
        pairs = zip(posterior.words[place].tolist(), posterior.probabilities[place].tolist(), strict=True)
        naive = sum(share * table[word].numpy() for word, share in pairs)
        assert found[place].numpy() == pytest.approx(naive, abs=1e-5)

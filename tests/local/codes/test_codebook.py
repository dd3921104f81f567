import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from rapt.errors import CorpusError, MechanismError, UsageError, VocabularyError
from rapt.local.codes.codebook import (
    PublicStates,
    check_sizes,
    draw_codewords,
    learn_directions,
    make_codebook,
    measure_attenuations,
    read_public_states,
)
from rapt.local.codes.encoder import read_encoder
from rapt.wire.code_bundle import check_codewords, project_states, read_code_bundle, write_code_bundle

WORDS = "the film was good bad slow loud long story actors laughed stars enough".split()


@pytest.fixture(scope="module")
def encoder():
    return read_encoder("bert-tiny")


def lines(n, *, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, 9))) for _ in range(n)]


def write_csv(path, rows, header="text"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def bent_states(n, *, rng, width=12):
    """States of a public text: correlated, of very different variances, away from 0."""
    mixing = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.geomspace(5, 0.05, width)[:, None]
    return (rng.standard_normal((n, width)) @ mixing + 3).astype(np.float32)


def coordinates(states, center, directions):
    return (states.astype(np.float64) - center) @ directions.T.astype(np.float64)


def test_coordinates_of_public_text_are_uncorrelated_and_of_variance_1(rng):
    texts = bent_states(3000, rng=rng)
    task = bent_states(500, rng=rng), rng.integers(3, size=500)
    for states in (PublicStates(texts=texts), PublicStates(texts=texts, tasks=(task,))):
        found = coordinates(texts, *learn_directions(states, dimensions=6, discriminants=2))
        np.testing.assert_allclose(np.cov(found, rowvar=False, bias=True), np.eye(6), atol=1e-3)
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)


def test_without_tasks_the_directions_are_the_principal_ones(rng):
    texts = bent_states(3000, rng=rng)
    center, directions = learn_directions(PublicStates(texts=texts), dimensions=4)
    np.testing.assert_allclose(center, texts.mean(axis=0), rtol=1e-5)
    principal = np.linalg.svd(texts.astype(np.float64) - texts.mean(axis=0), full_matrices=False)[2][:4]
    cosines = (directions * principal).sum(axis=1) / np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(abs(cosines), 1, atol=1e-5)


def test_the_first_direction_is_what_labels_of_public_tasks_share(rng):
    texts = bent_states(3000, rng=rng)
    axes = np.linalg.svd(texts - texts.mean(axis=0), full_matrices=False)[2]  # the first three are the principal ones
    shared, spread = axes[5], (texts @ axes[5]).std()
    tasks = []
    for own in axes[3:5]:
        labels = rng.integers(2, size=800)
        shift = np.outer(labels - 0.5, 4 * spread * shared + spread * own).astype(np.float32)
        tasks.append((bent_states(800, rng=rng) + shift, labels))
    states = PublicStates(texts=texts, tasks=tuple(tasks))

    def gaps(known, *, task):
        values, labels = tasks[task]
        found = coordinates(values, *learn_directions(known, dimensions=3, discriminants=1))
        return abs(found[labels == 1].mean(axis=0) - found[labels == 0].mean(axis=0))

    for task in range(2):
        first, *others = gaps(states, task=task)
        assert first > 3 > 1 > max(others)
        assert gaps(PublicStates(texts=texts), task=task).max() < 1


def test_the_first_directions_tell_names_of_labels_apart(rng):
    texts = bent_states(3000, rng=rng)
    axes = np.linalg.svd(texts - texts.mean(axis=0), full_matrices=False)[2]
    centers = texts.mean(axis=0) + 6 * np.stack([axes[7], axes[9], -axes[7] - axes[9]]).astype(np.float32)
    labels = np.arange(900) % 3
    judged = bent_states(900, rng=rng) * 0.2 + centers[labels]
    task = (bent_states(800, rng=rng) + np.outer(labels[:800] % 2, 4 * axes[10]).astype(np.float32), labels[:800] % 2)

    def share_right(states, *, dimensions):
        center, directions = learn_directions(states, dimensions=dimensions)
        found, means = (coordinates(values, center, directions) for values in (judged, centers))
        np.testing.assert_allclose(
            np.cov(coordinates(texts, center, directions), rowvar=False), np.eye(dimensions), atol=5e-3
        )
        return float((((found[:, None] - means) ** 2).sum(axis=2).argmin(axis=1) == labels).mean())

    assert share_right(PublicStates(texts=texts, names=centers), dimensions=2) > 0.95
    assert share_right(PublicStates(texts=texts, names=centers, tasks=(task,)), dimensions=5) > 0.95
    assert share_right(PublicStates(texts=texts), dimensions=2) < 0.7
    alone = learn_directions(PublicStates(texts=texts, names=centers), dimensions=5)[1]
    np.testing.assert_allclose(
        learn_directions(PublicStates(texts=texts, names=centers, tasks=(task,)), dimensions=5)[1][:2], alone[:2]
    )


@pytest.mark.parametrize("names", [("one",), ("same", "same "), ("a", " "), tuple(map(str, range(101)))])
def test_names_that_tell_no_labels_apart_are_refused(tmp_path, encoder, names):
    with pytest.raises(UsageError, match="2 to 100 different ones") as refused:
        read_public_states(encoder, [tmp_path / "not read yet.csv"], names=names)
    assert "same" not in str(refused.value)


@pytest.mark.parametrize("dimensions", [0, 13])
def test_dimensions_that_states_do_not_have_are_refused(rng, dimensions):
    with pytest.raises(UsageError, match="from 1 to 12"):
        learn_directions(PublicStates(texts=bent_states(100, rng=rng)), dimensions=dimensions)


def test_text_that_varies_in_too_few_directions_is_refused(rng):
    flat = np.repeat(bent_states(3, rng=rng), 30, axis=0)
    with pytest.raises(UsageError, match="must vary in as many directions"):
        learn_directions(PublicStates(texts=flat), dimensions=4)


def test_codewords_are_those_of_the_written_rule():
    books = draw_codewords(codes=2, codewords=50, dimensions=8)
    assert (books.shape, books.dtype) == ((2, 50, 4), np.float32)
    for number in range(2):
        raw = hashlib.shake_256(f"rapt codebook 1: {number} of 2, 50 x 4".encode()).digest(50 * 4 * 12 * 2)
        numbers = [int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)]
        for row in (0, 49):
            point = [2 * sum(numbers[(row * 4 + at) * 12 : (row * 4 + at + 1) * 12]) - 12 * 65_535 for at in range(4)]
            length = sum(value * value for value in point) ** 0.5
            assert books[number, row].tolist() == [np.float32(value / length) for value in point]


def test_codewords_are_the_same_on_every_machine():
    # hashlib.sha256(draw_codewords(codes=1, codewords=4096, dimensions=8).tobytes()).hexdigest()
    found = hashlib.sha256(draw_codewords(codes=1, codewords=4096, dimensions=8).astype("<f4").tobytes()).hexdigest()
    assert found == "3f0b67b3495f462a51ef8da4a10de8566ea1fb3eedd1710107b4366097f75903"


def test_codewords_lie_everywhere_on_the_sphere_alike():
    book = draw_codewords(codes=1, codewords=65_536, dimensions=4)[0].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(book, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(book.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(book.T @ book / len(book), np.eye(4) / 4, atol=0.01)
    # Of a uniform point of the sphere in four dimensions: E x^4 = 3 / (4 * 6), E x^2 y^2 = 1 / (4 * 6).
    np.testing.assert_allclose((book**4).mean(axis=0), 3 / 24, rtol=0.03)
    assert (book[:, 0] ** 2 * book[:, 1] ** 2).mean() == pytest.approx(1 / 24, rel=0.03)


@pytest.mark.parametrize(
    "sizes",
    [
        {"codes": 1, "codewords": 1, "dimensions": 8},
        {"codes": 1, "codewords": 65_537, "dimensions": 8},
        {"codes": 0, "codewords": 10, "dimensions": 8},
        {"codes": 3, "codewords": 10, "dimensions": 8},
        {"codes": 8, "codewords": 10, "dimensions": 8},
        {"codes": 1, "codewords": 10, "dimensions": 1},
    ],
)
def test_sizes_that_no_code_has_are_refused(sizes):
    with pytest.raises(UsageError):
        draw_codewords(**sizes)
    with pytest.raises(UsageError):
        check_sizes(**sizes)


def test_sizes_and_epsilons_are_refused_before_a_text_is_encoded(tmp_path):
    idle = SimpleNamespace(hidden_size=128)  # any use of it as an encoder is an error
    enough = write_csv(tmp_path / "enough.csv", lines(150))
    bare = write_csv(tmp_path / "bare.csv", lines(150), "text")
    few = write_csv(tmp_path / "few.csv", lines(70))
    for texts, dimensions, message in ((enough, 129, "from 1 to 128, those of its"), (few, 70, "got 70 for 70")):
        with pytest.raises(UsageError, match=message):
            read_public_states(idle, [texts], dimensions=dimensions)
    with pytest.raises(CorpusError, match="'label'"):
        read_public_states(idle, [enough], tasks=[bare])
    with pytest.raises(MechanismError, match="epsilon of a text"):
        check_sizes(codes=1, codewords=64, dimensions=8, epsilons=(4.0, 0.0))
    with pytest.raises(UsageError, match="from 1 to 4096"):
        check_sizes(codes=1, codewords=64, dimensions=4097)
    with pytest.raises(VocabularyError, match="in its codebook once"):
        check_codewords(np.ones((1, 2, 1), dtype=np.float32))


def test_a_code_is_made_of_public_files_and_read_again(tmp_path, encoder):
    texts = lines(150)
    table = write_csv(tmp_path / "public.csv", texts)
    labelled = write_csv(
        tmp_path / "task.csv", [f"{text},{'good' if 'good' in text else 'other'}" for text in texts], "text,label"
    )
    states = read_public_states(encoder, [table], tasks=[labelled])
    assert len(states.texts) == len(set(texts)) == len(states.tasks[0][1])
    bundle = make_codebook(encoder, states, dimensions=6, codewords=64, codes=2, languages=["en"])
    assert (bundle.model, bundle.encoder_hash, bundle.codes, bundle.size) == ("bert-tiny", encoder.hash, 2, 64)
    write_code_bundle(bundle, tmp_path / "code")
    assert read_code_bundle(tmp_path / "code").hash == bundle.hash
    np.testing.assert_allclose(np.linalg.norm(project_states(states.texts, bundle), axis=1), 1)


def test_a_larger_epsilon_keeps_more_of_a_code(encoder, rng):
    states = PublicStates(texts=bent_states(300, rng=rng, width=128))
    bundle = make_codebook(encoder, states, dimensions=4, codewords=256)
    measured = measure_attenuations(bundle, states, epsilons=(0.5, 2.0, 8.0))
    assert [item[0] for item in measured] == [0.5, 2.0, 8.0]
    assert 0.02 < measured[0][2] < 0.2 < measured[1][2] < 0.6 < 0.8 < measured[2][2] < 1


def test_the_same_text_twice_counts_once_and_order_is_nothing(tmp_path, encoder):
    texts = lines(100)
    once = read_public_states(encoder, [write_csv(tmp_path / "a.csv", texts)])
    twice = read_public_states(encoder, [write_csv(tmp_path / "b.csv", texts[::-1] + texts)])
    np.testing.assert_array_equal(once.texts, twice.texts)


def test_too_little_public_text_and_a_task_without_labels_are_refused(tmp_path, encoder):
    few = write_csv(tmp_path / "few.csv", lines(10))
    enough = write_csv(tmp_path / "enough.csv", lines(150))
    one = write_csv(tmp_path / "one.csv", [f"{text},same" for text in lines(150)], "text,label")
    with pytest.raises(CorpusError, match="at least 64 different public texts, got"):
        read_public_states(encoder, [few])
    with pytest.raises(CorpusError, match="2 to 100 labels, got"):
        read_public_states(encoder, [enough], tasks=[one])
    with pytest.raises(CorpusError):
        read_public_states(encoder, [enough], tasks=[enough])

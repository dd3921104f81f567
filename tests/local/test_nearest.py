"""Exact nearest tokens: equal to brute force in float64, ties to the lowest id, whatever the screen did."""

import pickle
import tracemalloc
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rapt.errors import VocabularyError
from rapt.local.mechanisms.laplace import sample_noise
from rapt.local.nearest import BATCH, TILE, NearestToken, drop_equal_rows
from rapt.local.nearest_kernel import load_kernel

# What a search may use besides the table and one copy of it, whatever the size of either, in bytes.
BUFFER = 64e6


KERNEL = load_kernel()
NO_TILES = KERNEL is None or KERNEL.tiles is None


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="tiles", marks=pytest.mark.skipif(NO_TILES, reason="no AMX here")),
        pytest.param(
            {"use_tiles": False}, id="int8", marks=pytest.mark.skipif(KERNEL is None, reason="no kernel here")
        ),
        pytest.param({"use_kernel": False}, id="float32"),
    ],
)
def prepare(request):
    """The search by each of its screens, and by each way of the kernel: every law holds for all."""

    return partial(NearestToken, **request.param)


def brute_force(vectors, table, eligible):
    """Every score v·w - ||w||²/2 in float64, one vector at a time; the lowest id of the best."""
    rows = table[eligible].astype(np.float64)
    half = (rows * rows).sum(axis=1) / 2
    return np.array([eligible[np.argmax(rows @ v.astype(np.float64) - half)] for v in vectors])


def all_of(table):
    return np.arange(len(table), dtype=np.int64)


@pytest.mark.parametrize("dim", [1, 2, 7, 384])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_search_equals_brute_force_on_random_tables(dim, dtype, rng, prepare):
    table = rng.standard_normal((TILE + 300, dim)).astype(np.float32)
    eligible = np.sort(rng.choice(len(table), TILE + 10, replace=False))
    vectors = (rng.standard_normal((150, dim)) * rng.choice([0.01, 1, 100], (150, 1))).astype(dtype)
    assert (prepare(table, eligible).search(vectors) == brute_force(vectors, table, eligible)).all()


@pytest.mark.parametrize("eta", [1e-6, 1.0, 20.0, 50.0, 75.0, 100.0, 1e3])
def test_search_equals_brute_force_on_a_real_table(bert_tiny, eta, rng, prepare):
    ids = rng.integers(bert_tiny.size, size=120)
    noisy = bert_tiny.embeddings[ids] + sample_noise(rng, eta=eta, dim=bert_tiny.dimension, size=len(ids))
    found = prepare(bert_tiny.embeddings, bert_tiny.eligible).search(noisy)
    assert (found == brute_force(noisy, bert_tiny.embeddings, bert_tiny.eligible)).all()


@pytest.mark.slow
@pytest.mark.parametrize("eta", [10.0, 25.0, 50.0, 75.0, 100.0, 125.0, 150.0, 300.0])
def test_both_searches_equal_brute_force_over_many_tokens(eta, rng):
    from rapt.local.vocabulary import load_vocabulary

    minilm = load_vocabulary("minilm")
    rows = minilm.embeddings[minilm.eligible].astype(np.float64)
    half = (rows * rows).sum(axis=1) / 2
    searches = [NearestToken(minilm.embeddings, minilm.eligible, use_kernel=kernel).search for kernel in (True, False)]
    scores = np.empty((256, len(rows)))
    for _ in range(50):
        ids = rng.integers(minilm.size, size=256)
        noisy = minilm.embeddings[ids] + sample_noise(rng, eta=eta, dim=minilm.dimension, size=256)
        np.subtract(np.matmul(noisy, rows.T, out=scores), half, out=scores)
        nearest = minilm.eligible[scores.argmax(axis=1)]
        assert all((search(noisy) == nearest).all() for search in searches)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    table=arrays.arrays(np.int8, st.tuples(st.integers(1, 40), st.just(3)), elements=st.integers(-3, 3)),
    vectors=arrays.arrays(np.int8, st.tuples(st.integers(1, 8), st.just(3)), elements=st.integers(-6, 6)),
)
def test_ties_go_to_the_lowest_id(table, vectors, prepare):
    # Whole and half numbers: many exact ties, and distances that Python computes exactly.
    found = prepare(table.astype(np.float32), all_of(table)).search(vectors.astype(np.float32) / 2)
    for vector, token in zip(vectors.tolist(), found.tolist(), strict=True):
        square = [sum((Fraction(a, 2) - b) ** 2 for a, b in zip(vector, row, strict=True)) for row in table.tolist()]
        assert token == square.index(min(square))


def test_equal_rows_across_tiles_give_the_lowest_id(rng, prepare):
    table = np.repeat(rng.standard_normal((2, 33)).astype(np.float32), TILE, axis=0)
    table[5] = table[-1]
    assert prepare(table, all_of(table)).search(table[[0, 5, -1, TILE]]).tolist() == [0, 5, 5, 5]


def test_a_table_of_equal_rows_gives_the_first(rng, prepare):
    table = np.ones((5_000, 16), dtype=np.float32)
    assert (prepare(table, all_of(table)).search(rng.standard_normal((9, 16))) == 0).all()


@pytest.mark.parametrize(("count", "apart"), [(50, 1), (8, TILE)], ids=["in one tile", "one a tile"])
def test_rows_one_unit_apart_in_float32_are_told_apart(count, apart, rng, prepare):
    row = rng.standard_normal(384).astype(np.float32)
    table = np.full((count * apart, 384), 10, dtype=np.float32)
    near = np.arange(count) * apart
    table[near] = row
    for i, place in enumerate(near):
        table[place, i] = np.nextafter(row[i], np.float32(np.inf))
    found = prepare(table, all_of(table)).search(table[near].astype(np.float64))
    assert (found == near).all()
    # The twin: a float32 product without the re-check cannot.
    half = (table * table).sum(axis=1) / 2
    assert ((table[near] @ table.T - half).argmax(axis=1) != near).any()


@pytest.mark.parametrize("apart", [1, TILE], ids=["in one tile", "in two tiles"])
def test_vectors_halfway_between_two_rows_are_decided(apart, rng, prepare):
    # Closer to a tie than float32 can see, on a side that is known.
    table = (10 * rng.standard_normal((3 * TILE, 64))).astype(np.float32)
    left = np.arange(0, TILE - 1, 2)
    right = left + apart
    table[right] = table[left] + rng.standard_normal((len(left), 64)).astype(np.float32)
    side = rng.choice([-1e-7, 1e-7], (len(left), 1))
    a, b = table[left].astype(np.float64), table[right].astype(np.float64)
    vectors = (a + b) / 2 + side * (a - b)
    nearer = np.where(side[:, 0] > 0, left, right)
    assert (prepare(table, all_of(table)).search(vectors) == nearer).all()
    # The twin: a float32 product without the re-check.
    half = (table * table).sum(axis=1) / 2
    guesses = (vectors.astype(np.float32) @ table.T - half).argmax(axis=1)
    assert 0.1 < (guesses != nearer).mean() < 0.9


def test_the_nearest_of_many_rows_on_one_sphere_is_found(rng, prepare):
    # Rows all about 1 away from a vector: equal but for the rounding of the table, in one tile and in several.
    vectors = 10 * rng.standard_normal((500, 64))
    spokes = rng.standard_normal((500, 6, 64))
    rows = (vectors[:, None] + spokes / np.linalg.norm(spokes, axis=2, keepdims=True)).astype(np.float32)
    place = rng.permutation(500 * 6).reshape(500, 6)
    table = np.empty((500 * 6, 64), dtype=np.float32)
    table[place] = rows
    square = np.square(rows - vectors[:, None]).sum(axis=2)
    nearest = place[np.arange(500), square.argmin(axis=1)]
    assert (prepare(table, all_of(table)).search(vectors) == nearest).all()


def test_a_tie_far_from_the_table_is_decided_by_direction(rng, prepare):
    # In float64 every ||v - w||² is the same here: only the score tells the tokens apart.
    table = rng.standard_normal((300, 8)).astype(np.float32)
    vectors = rng.standard_normal((20, 8)) * 1e25
    square = ((vectors[:, None] - table[None]) ** 2).sum(axis=-1)
    assert (square.argmin(axis=1) != brute_force(vectors, table, all_of(table))).any()
    assert (prepare(table, all_of(table)).search(vectors) == (vectors @ table.T).argmax(axis=1)).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e10, 1e30, 1e38, 1e39, 1e200])
def test_vectors_of_any_length_are_searched_exactly(scale, rng, prepare):
    table = rng.standard_normal((400, 20)).astype(np.float32)
    vectors = rng.standard_normal((20, 20)) * scale
    assert (prepare(table, all_of(table)).search(vectors) == brute_force(vectors, table, all_of(table))).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1e3, 1e12])
def test_tables_of_any_scale_are_searched_exactly(scale, rng, prepare):
    table = (rng.standard_normal((400, 20)) * scale).astype(np.float32)
    vectors = table[:30] + rng.standard_normal((30, 20)) * scale
    assert (prepare(table, all_of(table)).search(vectors) == brute_force(vectors, table, all_of(table))).all()


def test_the_answer_does_not_depend_on_the_batch(rng, prepare):
    table = rng.standard_normal((500, 24)).astype(np.float32)
    vectors = rng.standard_normal((2 * BATCH + 3, 24))
    search = prepare(table, all_of(table)).search
    assert (search(vectors) == np.concatenate([search(vectors[i : i + 1]) for i in range(len(vectors))])).all()


def test_a_search_that_is_sent_to_a_worker_gives_the_same_answers(rng, prepare):
    table = rng.standard_normal((500, 24)).astype(np.float32)
    search = prepare(table, all_of(table))
    sent = pickle.loads(pickle.dumps(search))  # as multiprocessing sends it
    assert sent.screen == search.screen
    assert (sent.search(table + 0.5) == search.search(table + 0.5)).all()


def test_only_eligible_tokens_are_found(rng, prepare):
    table = rng.standard_normal((100, 5)).astype(np.float32)
    eligible = np.array([3, 50, 99])
    assert set(prepare(table, eligible).search(table.copy()).tolist()) <= {3, 50, 99}


def test_inputs_are_not_changed(rng, prepare):
    table = rng.standard_normal((100, 5)).astype(np.float32)
    vectors = rng.standard_normal((BATCH + 1, 5))
    before = table.copy(), vectors.copy()
    prepare(table, all_of(table)).search(vectors)
    assert (table == before[0]).all()
    assert (vectors == before[1]).all()


def test_no_vectors_give_no_tokens(prepare):
    table = np.ones((3, 5), dtype=np.float32)
    assert prepare(table, all_of(table)).search(np.empty((0, 5))).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(value, prepare):
    table = np.ones((3, 5), dtype=np.float32)
    with pytest.raises(VocabularyError, match="vectors must be finite"):
        prepare(table, all_of(table)).search(np.full((2, 5), value))


def test_a_table_too_long_for_float32_is_refused(prepare):
    with pytest.raises(VocabularyError, match="must be shorter than"):
        prepare(np.full((3, 5), 1e30, dtype=np.float32), all_of(range(3)))


def test_a_vector_of_another_width_is_refused(prepare):
    table = np.ones((3, 5), dtype=np.float32)
    with pytest.raises(VocabularyError, match=r"vectors must be of shape \(n, 5\), got \(2, 4\)"):
        prepare(table, all_of(table)).search(np.ones((2, 4)))


@pytest.mark.parametrize("eligible", [[], [2, 1], [1, 1], [-1, 0], [0, 3]])
def test_eligible_ids_that_are_not_sorted_rows_are_refused(eligible, prepare):
    with pytest.raises(VocabularyError, match="eligible ids must be sorted rows of the table"):
        prepare(np.ones((3, 5), dtype=np.float32), np.array(eligible, dtype=np.int64))


def outlier_dimension(rng):
    table = rng.standard_normal((700, 50))
    table[:, 7] *= 1e4
    return table


TABLES = {
    "one dimension": lambda rng: rng.standard_normal((300, 1)),
    "fifty dimensions": lambda rng: rng.standard_normal((300, 50)),
    "768 dimensions": lambda rng: rng.standard_normal((300, 768)),
    "one row": lambda rng: rng.standard_normal((1, 33)),
    "fewer rows than a block": lambda rng: rng.standard_normal((10, 33)),
    "one row more than a block": lambda rng: rng.standard_normal((65, 33)),
    "every row five times": lambda rng: np.repeat(rng.standard_normal((200, 20)), 5, axis=0)[rng.permutation(1000)],
    "all rows equal": lambda rng: np.ones((3000, 20)),
    "all rows zero": lambda rng: np.zeros((300, 20)),
    "rows all but equal": lambda rng: 10 + 1e-3 * rng.standard_normal((2 * TILE, 20)),
    "some rows a million times longer": lambda rng: (
        rng.standard_normal((300, 20)) * rng.choice([1, 1e6], (300, 1), p=[0.9, 0.1])
    ),
    "some rows far shorter than float32 reaches": lambda rng: (
        rng.standard_normal((300, 20)) * rng.choice([1, 1e-42], (300, 1))
    ),
    "one long dimension": outlier_dimension,
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("noise", [1e-3, 1.0, 30.0])
def test_search_equals_brute_force_on_tables_made_to_be_hard(kind, noise, rng, prepare):
    table = TABLES[kind](rng).astype(np.float32)
    spread = table.std() or 1.0
    vectors = table[rng.integers(len(table), size=70)] + noise * spread * rng.standard_normal((70, table.shape[1]))
    found = prepare(table, all_of(table)).search(vectors)
    assert (found == brute_force(vectors, table, all_of(table))).all()


def test_of_equal_rows_the_first_is_kept(rng):
    table = rng.integers(-1, 2, size=(500, 4)).astype(np.float32)
    table[table == 0] = 0.0
    eligible = np.sort(rng.choice(500, 400, replace=False))
    first = {table[i].tobytes(): i for i in eligible[::-1].tolist()}
    assert drop_equal_rows(table, eligible).tolist() == sorted(first.values())


@pytest.mark.parametrize("alike", [False, True], ids=["a table", "rows all but equal"])
def test_the_search_holds_no_more_than_another_table_and_a_buffer(alike, rng, prepare):
    table = rng.standard_normal((20_000, 128)).astype(np.float32)
    if alike:
        table = 10 + 1e-3 * table
    count = 20 if alike else BATCH  # alike, every row is compared in float64
    vectors = table[rng.integers(len(table), size=count)] + 0.2 * rng.standard_normal((count, 128))
    tracemalloc.start()
    try:
        search = prepare(table, all_of(table)).search
        found = search(vectors)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(np.unique(found)) > 1
    assert held < 1.05 * table.nbytes
    assert peak < 1.05 * table.nbytes + BUFFER

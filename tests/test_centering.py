"""A first round finds the centre of a narrow kind of text, to within the error it states, and labels show better."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rapt.centering import center_codes, estimate_center
from rapt.errors import UsageError, VocabularyError, WireError
from rapt.local.codes.codebook import draw_codewords
from rapt.local.codes.subset import make_subset
from rapt.wire.code_bundle import (
    apply_center,
    make_code_bundle,
    project_states,
    read_code_bundle,
    write_center,
    write_code_bundle,
)

WIDTH = 6


@pytest.fixture(scope="module", params=[1, 2])
def bundle(request):
    return make_code_bundle(
        model="tiny-encoder",
        encoder_hash="sha256:" + "cd" * 32,
        center=np.zeros(WIDTH, np.float32),
        directions=np.eye(WIDTH, dtype=np.float32),
        codewords=draw_codewords(codes=request.param, codewords=512, dimensions=WIDTH),
        max_tokens=16,
    )


def narrow_states(count, *, seed=0):
    """States in one corner: two labels whose codes differ by little beside what they have in common."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    apart = np.array([0, 0.5, 0.4, 0, 0.3, 0.4])
    return (
        np.array([2.0, 0, 1, 1.5, 0, 1]) + (2 * labels[:, None] - 1) * apart + 0.4 * rng.standard_normal((count, WIDTH))
    ).astype(np.float32), labels


def run_means(bundle, codes):
    runs = codes.reshape(len(codes), bundle.codes, -1)
    return (runs / np.linalg.norm(runs, axis=2, keepdims=True)).mean(axis=0).ravel()


def test_the_estimate_is_as_near_to_the_mean_code_as_it_says(bundle, rng):
    states, _ = narrow_states(3000)
    mechanism, codes = make_subset(bundle, epsilon=4.0), project_states(states, bundle)
    found = estimate_center(bundle, mechanism.setting, mechanism.privatize(codes, rng=rng))
    truth = run_means(bundle, codes)
    # Beside noise, the codebook is not quite even. Ten standard errors: fails by chance in one run of 10^20.
    assert np.linalg.norm(found.offset - truth) < 10 * found.error * bundle.codes**0.5 + 0.05
    assert found.error < 0.2
    assert found.length == pytest.approx(np.linalg.norm(truth) / bundle.codes**0.5, abs=10 * found.error + 0.05)
    assert (found.first_round.texts, found.first_round.epsilon, found.first_round.code_hash) == (3000, 4.0, bundle.hash)


def test_labels_that_the_noise_hid_are_told_by_codes_from_the_centre(bundle):
    rng = np.random.default_rng(1)
    (first, _), (states, labels) = narrow_states(2000), narrow_states(4000, seed=1)
    mechanism = make_subset(bundle, epsilon=4.0)
    centred = center_codes(
        bundle, estimate_center(bundle, mechanism.setting, mechanism.privatize(project_states(first, bundle), rng=rng))
    )
    gaps = []
    for one in (bundle, centred):
        ids = make_subset(one, epsilon=4.0).privatize(project_states(states, one), rng=rng)
        words = np.concatenate([book[column] for book, column in zip(one.codewords, ids.T, strict=True)], axis=1)
        gaps.append(np.linalg.norm(words[labels == 1].mean(axis=0) - words[labels == 0].mean(axis=0)))
    assert gaps[1] > 1.5 * gaps[0]


def test_a_centred_code_is_another_code_with_codes_of_length_1_and_is_read_as_it_was_written(bundle, tmp_path):
    mechanism = make_subset(bundle, epsilon=8.0)
    states, _ = narrow_states(1000)
    given = mechanism.privatize(project_states(states, bundle), rng=np.random.default_rng(0))
    centred = center_codes(bundle, estimate_center(bundle, mechanism.setting, given))
    assert centred.hash != bundle.hash
    assert apply_center(bundle, write_center(centred)).hash == centred.hash
    for wrong in ("", "a:b:c", "1000:8.0:AAA", "1000:8.0:AAAA"):
        with pytest.raises((WireError, VocabularyError)):
            apply_center(bundle, wrong)
    other = center_codes(bundle, estimate_center(bundle, mechanism.setting, given[:900]))
    assert other.hash != centred.hash
    codes = project_states(np.concatenate([states, [[0] * WIDTH, [np.nan] * WIDTH]]).astype(np.float32), centred)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), [1] * 1000 + [0, 0], atol=1e-12)
    write_code_bundle(centred, tmp_path / "code")
    again = read_code_bundle(tmp_path / "code")
    assert (again.hash, again.first_round) == (centred.hash, centred.first_round)
    assert (project_states(states, again) == codes[:1000]).all()
    path = tmp_path / "code" / "code.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "first_round": {**described["first_round"], "texts": 7}}))
    with pytest.raises(VocabularyError, match="fetch both again"):
        read_code_bundle(tmp_path / "code")
    path.write_text(json.dumps({**described, "first_round": {"texts": 7}}))
    with pytest.raises(WireError, match="first round"):
        read_code_bundle(tmp_path / "code")


def test_a_centre_that_is_noise_and_a_second_centring_are_refused(bundle):
    rng = np.random.default_rng(0)
    mechanism = make_subset(bundle, epsilon=0.5)
    with pytest.raises(UsageError, match="at least two"):
        estimate_center(bundle, mechanism.setting, np.zeros((1, bundle.codes), np.int64))
    even = mechanism.privatize(project_states(rng.standard_normal((40, WIDTH)).astype(np.float32), bundle), rng=rng)
    with pytest.raises(UsageError, match="more than its noise"):
        center_codes(bundle, estimate_center(bundle, mechanism.setting, even))
    strong = make_subset(bundle, epsilon=8.0)
    given = strong.privatize(project_states(narrow_states(500)[0], bundle), rng=rng)
    found = estimate_center(bundle, strong.setting, given)
    with pytest.raises(UsageError, match="centred once"):
        center_codes(center_codes(bundle, found), found)
    long = replace(found, offset=np.full(WIDTH, 1.0))
    with pytest.raises(VocabularyError, match="shorter than its codes"):
        center_codes(bundle, long)

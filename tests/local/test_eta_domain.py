"""An eta outside of any use is answered in its own terms, on every vocabulary, whatever the mechanism."""

import numpy as np
import pytest

from rapt.errors import MechanismError
from rapt.local.guarantee import privacy_statement
from rapt.local.mechanisms import MECHANISMS, check_useful_eta, make_mechanism
from rapt.local.unchanged import measure_unchanged
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("eta", [5e-324, 1e-320, 1e-200, 1e-12])
def test_noise_that_is_too_long_to_compute_with_is_refused_by_every_mechanism(bert_tiny, name, eta):
    with pytest.raises(MechanismError, match=f"eta must be at least .* on this vocabulary, .* got eta={eta!r}"):
        make_mechanism(name, vocabulary=bert_tiny, eta=eta, allow_unproved=True)


def test_the_least_eta_still_draws_and_forgets_the_token(bert_tiny):
    tokens = np.full(200, bert_tiny.eligible[500])
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=1e-10)
    drawn = made.privatize(tokens, rng=np.random.default_rng(1))
    assert (drawn == tokens).mean() < 0.05


@pytest.mark.parametrize("eta", [1e5, 1e300])
def test_an_eta_that_no_token_is_changed_by_is_of_no_use(bert_tiny, eta):
    with pytest.raises(MechanismError, match=r"eta must be at most 8\.\d+e\+04 on this vocabulary, .* got eta=1"):
        check_useful_eta(eta, vocabulary=bert_tiny)
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=8e4)
    assert measure_unchanged(made, bert_tiny, rng=np.random.default_rng(1)).share == 1.0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_domain_goes_with_the_distances_of_the_table(scale):
    rows = np.random.default_rng(1).standard_normal((300, 8)) * scale
    vocabulary = toy_vocabulary(rows)
    check_useful_eta(10_000 / scale, vocabulary=vocabulary)
    check_useful_eta(1e-10 / scale, vocabulary=vocabulary)
    for eta in (1e-14 / scale, 100_000 / scale):
        with pytest.raises(MechanismError, match="eta must be at"):
            check_useful_eta(eta, vocabulary=vocabulary)


@pytest.mark.parametrize(("eta", "protects"), [(30.0, True), (5e3, False)])
def test_a_statement_says_that_a_file_reads_as_its_text_did(bert_tiny, eta, protects):
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=eta)
    unchanged = measure_unchanged(made, bert_tiny, rng=np.random.default_rng(1))
    stated = privacy_statement(
        bert_tiny, made.setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=False, unchanged=unchanged
    )
    assert stated.to_json()["protects"] is protects
    assert ("PROTECTS NEXT TO NOTHING" in stated.to_text()) is not protects
    assert "INSECURE" not in stated.to_text()

"""RMIA against its definition, text by text."""

import numpy as np
import pytest
from scipy.special import expit

from rapt.audit.artefact.membership_view import MembershipView
from rapt.audit.artefact.rmia import rmia


def by_definition(view, *, gamma):
    """Share of the other texts z with [p(x | model) / p(x)] / [p(z | model) / p(z)] of at least γ."""
    ratios = []
    for text, confidence in enumerate(view.target):
        inside = [expit(row[text]) for row, had in zip(view.shadows, view.members[:, text], strict=True) if had]
        outside = [expit(row[text]) for row, had in zip(view.shadows, view.members[:, text], strict=True) if not had]
        ratios.append(expit(confidence) / ((np.mean(inside) + np.mean(outside)) / 2))
    return np.array(
        [
            np.mean([ratio / other >= gamma for at, other in enumerate(ratios) if at != text])
            for text, ratio in enumerate(ratios)
        ]
    )


@pytest.fixture
def view():
    rng = np.random.default_rng(0)
    members = np.stack([np.ones(50), np.zeros(50), rng.random(50) < 0.5, rng.random(50) < 0.5]).astype(bool)
    return MembershipView(target=2 * rng.standard_normal(50), shadows=2 * rng.standard_normal((4, 50)), members=members)


def test_it_is_the_share_of_texts_that_it_is_surer_than(view):
    np.testing.assert_allclose(rmia(view), by_definition(view, gamma=1.0))


def test_another_gamma_orders_texts_alike_with_more_ties(view):
    one, two = rmia(view), by_definition(view, gamma=2.0)
    order = np.argsort(one)
    assert (np.diff(two[order]) >= 0).all()
    assert len(set(two)) < len(set(one))

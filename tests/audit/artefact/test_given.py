"""An adapter that was handed back: one that remembers is found, one that does not is not; files of two kinds show."""

from dataclasses import replace

import numpy as np
import pytest

from rapt.audit.artefact.given import OwnersTexts, attack_given, fit_workshop, read_card, read_config_of_card
from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS
from rapt.audit.artefact.run import audit_adapter, weigh_evidence_on_adapter
from rapt.audit.artefact.workshop import TokenTexts, Workshop
from rapt.audit.report.artefact import ArtefactReport, list_not_tried, render_artefact_report, state_artefact_verdict
from rapt.errors import AuditError, WireError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.methods import LORA
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import ReconstructionConfig, make_default_config
from rapt.wire.manifest import PlainTokens
from significance import ALPHA

TEXTS, SHADOWS = 40, 4


def random_texts(vocabulary, *, seed, pool=None):
    rng = np.random.default_rng(seed)
    words = vocabulary.eligible if pool is None else vocabulary.eligible[pool]
    return TokenTexts(
        contents=tuple(tuple(row) for row in rng.choice(words, size=(TEXTS, 6)).tolist()),
        labels=tuple(rng.integers(2, size=TEXTS).tolist()),
        names=("no", "yes"),
    )


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary("bert-tiny")


@pytest.fixture(scope="module")
def workshop(vocabulary):
    return Workshop(
        backbone=load_backbone("bert-tiny", precision="float32", device="cpu"),
        vocabulary=vocabulary,
        mechanism=make_mechanism("laplace", vocabulary=vocabulary, eta=400.0),  # hardly a token changes
        config=replace(make_default_config(LORA), epochs=16, batch_size=20, learning_rate=0.005),
    )


@pytest.fixture(scope="module")
def owned(vocabulary):
    mine, others = random_texts(vocabulary, seed=0), random_texts(vocabulary, seed=1)
    return OwnersTexts(texts=mine.and_also(others), sent=np.arange(2 * TEXTS) < TEXTS)


@pytest.fixture(scope="module")
def adapter(workshop, owned):
    return workshop.tune(owned.texts.at(np.flatnonzero(owned.sent)), seed=99)


def attack(workshop, adapter, owned, *, shadows=SHADOWS):
    return attack_given(workshop, adapter, owned, shadows=shadows, queries=1, seed=0)


def test_an_overfitted_adapter_shows_what_it_was_tuned_on_and_the_page_says_so(workshop, adapter, owned):
    found = audit_adapter(fit_workshop(workshop, adapter.card), adapter, owned, shadows=SHADOWS, queries=1, seed=0)
    given = found.given
    assert (given.members, given.others, given.shadows) == (TEXTS, TEXTS, SHADOWS)
    assert weigh_evidence_on_adapter(given)[0].corrected < 1e-3
    clear = {attack.named.attack: attack.named.score for attack in given.attacks if attack.asked_with == "clear"}
    assert all(clear[name].auc.low > 0.7 for name in ("hierarchical", "lira_online"))
    assert "shows which texts" in state_artefact_verdict(found).headline
    page = render_artefact_report(
        ArtefactReport(title="A", created="2026-01-02", created_by="rapt test", findings=found)
    )
    assert "Check: AUC without memory" in page
    assert all(name != "Your own adapter" for name, _ in list_not_tried(found))


def test_an_adapter_that_had_none_of_the_texts_is_not_accused(workshop, vocabulary, owned):
    stranger = workshop.tune(random_texts(vocabulary, seed=2), seed=99)
    assert all(entry.p > ALPHA for entry in weigh_evidence_on_adapter(attack(workshop, stranger, owned)))


def of_one_class(texts, vocabulary):
    """Texts of one class that a word marks: easy for any model that had some of their kind."""
    mark = int(vocabulary.eligible[700])
    return replace(texts, contents=tuple((mark, *content[1:]) for content in texts.contents), labels=(1,) * TEXTS)


def test_two_files_that_differ_in_kind_are_no_memory(workshop, vocabulary):
    easy, hard = of_one_class(random_texts(vocabulary, seed=0), vocabulary), random_texts(vocabulary, seed=1)
    owned = OwnersTexts(texts=easy.and_also(hard), sent=np.arange(2 * TEXTS) < TEXTS)
    # An adapter that had neither file, but other texts of both kinds.
    strangers = random_texts(vocabulary, seed=2).and_also(of_one_class(random_texts(vocabulary, seed=3), vocabulary))
    found = attack(workshop, workshop.tune(strangers, seed=99), owned)
    threshold = [a for a in found.attacks if a.named.attack == "threshold"]
    assert all(a.named.score.p < ALPHA and not a.counts for a in threshold)
    assert all("threshold" not in entry.test and entry.corrected > ALPHA for entry in weigh_evidence_on_adapter(found))


def test_the_run_of_a_card_is_that_of_the_adapter(workshop, adapter):
    assert replace(read_config_of_card(adapter.card), seed=0) == workshop.config
    other = replace(
        workshop.config, epochs=1, lora_targets=("query",), reconstruction=ReconstructionConfig(weight=0.3, head_size=8)
    )
    pool = tuple(int(token) for token in workshop.vocabulary.eligible[1000:1020])
    shop = replace(workshop, config=other, plain_tokens=PlainTokens(count=3, pool=pool, fixed=None))
    texts = random_texts(workshop.vocabulary, seed=4)
    made = shop.tune(texts, seed=5)
    assert made.card.plain_tokens == 3
    assert read_config_of_card(made.card) == replace(other, seed=5)
    # Plain tokens stand before every query, in the shadow models' files as well.
    owned = OwnersTexts(texts=texts, sent=np.arange(TEXTS) < TEXTS // 2)
    assert len(attack(fit_workshop(shop, made.card), made, owned, shadows=3).attacks) == 2 * len(MEMBERSHIP_ATTACKS)
    with pytest.raises(AuditError, match="plain tokens"):
        fit_workshop(workshop, made.card)


@pytest.mark.parametrize("change", [{"pairs": True}, {"task": "generation"}, {"training": {"label_epsilon": 1.0}}])
def test_an_adapter_of_another_task_is_refused(change, adapter):
    with pytest.raises(AuditError, match="single texts"):
        read_config_of_card(replace(adapter.card, **change))


def test_without_others_or_without_a_card_there_is_no_attack(workshop, adapter, owned, tmp_path):
    with pytest.raises(AuditError, match="both files"):
        attack(workshop, adapter, replace(owned, sent=np.ones(2 * TEXTS, dtype=bool)))
    with pytest.raises(WireError, match=r"rapt\.json"):
        read_card(tmp_path)

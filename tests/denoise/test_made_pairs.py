"""Pairs made of public texts: the student learns both texts of one, each by itself."""

import numpy as np
import pytest
import torch

from rapt.denoise.made_pairs import second_texts
from rapt.denoise.plan import WarmUpPlan
from rapt.errors import UsageError
from rapt.service.model.denoising import Student

TEXTS = [list(range(1000 + 20 * place, 1000 + 20 * place + 3 + place % 9)) for place in range(200)]


def test_half_of_the_seconds_are_forms_of_their_text_and_the_others_are_neighbours():
    found = second_texts(TEXTS, rng=np.random.default_rng(0))
    assert all(found)
    forms = [set(second) <= set(text) for text, second in zip(TEXTS, found, strict=True)]
    neighbours = [second == TEXTS[(place + 1) % len(TEXTS)] for place, second in enumerate(found)]
    assert all(form != neighbour for form, neighbour in zip(forms, neighbours, strict=True))
    assert 0.45 < np.mean(forms) < 0.75
    lost = [len(second) < len(text) for text, second, form in zip(TEXTS, found, forms, strict=True) if form]
    assert np.mean(lost) > 0.5


def test_texts_are_left_as_they_were():
    before = [list(text) for text in TEXTS]
    second_texts(TEXTS, rng=np.random.default_rng(1))
    assert before == TEXTS


def test_a_student_of_pairs_begins_as_its_teacher_and_is_judged_on_each_text():
    student, clear = Student("bert-tiny"), TEXTS[5:9]
    others = [TEXTS[place] for place in (20, 29, 38, 47)]  # of one length
    with torch.no_grad():
        same = student.agreement(clear, clear, seconds=(others, others))
        other_second = student.agreement(clear, clear, seconds=(others, [others[-1], *others[:-1]]))
    assert same.loss.item() < 1e-8
    assert other_second.text.item() > 0.1  # the twin: a second text that is another one is noticed


def test_a_share_of_pairs_is_a_share():
    with pytest.raises(UsageError, match=r"the share of pairs must be from 0 to 1, got pairs=1\.5"):
        WarmUpPlan(model="bert-tiny", etas=(75.0,), pairs=1.5)

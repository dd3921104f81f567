from dataclasses import replace

import pytest

from rapt.compare.files import FileMaker
from rapt.compare.plan import ARMS, CLEAN, LONGER, NO_LOSS, PROBING, RAPT, SHUFFLED, ComparisonPlan, shuffle_targets
from rapt.compare.texts import LabelledTexts, Split
from rapt.errors import MechanismError, UsageError
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import TuningConfig
from tuning_material import separable_file

TEXTS = LabelledTexts(texts=("a good film", "a bad film", "a film"), labels=(1, 0, 1), names=("no", "yes"))
SPLIT = Split(training=TEXTS, evaluation=TEXTS)


@pytest.fixture(scope="module")
def file():
    return separable_file(load_backbone("bert-tiny"), records=16, plain=4, fixed=False)


def plan(**changes):
    return ComparisonPlan(**({"model": "bert-tiny", "etas": (75.0,)} | changes))


def test_shuffled_targets_are_another_records_and_nothing_else_moves(file):
    shuffled = shuffle_targets(file, 0)
    assert sorted(record.plain_tokens for record in shuffled.records) == sorted(r.plain_tokens for r in file.records)
    for before, after in zip(file.records, shuffled.records, strict=True):
        assert replace(after, plain_tokens=before.plain_tokens) == before
        assert after.plain_tokens != before.plain_tokens


def test_arms_differ_from_the_common_run_in_what_they_say_only():
    common = TuningConfig(seed=3)
    assert ARMS[CLEAN].configure(common, 0.5, 4) == common
    assert ARMS[RAPT].configure(common, 0.5, 4).reconstruction.weight == 0.5
    assert ARMS[NO_LOSS].configure(common, 0.5, 4).reconstruction.weight == 0.0
    assert ARMS[LONGER].configure(common, 0.5, 4) == replace(common, prompt_length=common.prompt_length + 4)
    assert ARMS[SHUFFLED].configure(common, 0.5, 4) == ARMS[RAPT].configure(common, 0.5, 4)
    own = ARMS[PROBING].configure(common, 0.5, 4)
    assert replace(own, method=common.method, learning_rate=common.learning_rate) == common
    assert (own.method, own.learning_rate) == ("linear_probing", 0.01)


def test_linear_probing_is_an_arm_and_not_what_arms_change():
    with pytest.raises(UsageError, match="linear probing has arms of its own, got method='linear_probing'"):
        plan(method="linear_probing")


def test_clean_text_is_run_once_a_seed_whatever_the_etas():
    cells = list(plan(etas=(50.0, 75.0), seeds=(0, 1), arms=(CLEAN, RAPT)).list_cells())
    assert [(cell.arm, cell.eta, cell.seed) for cell in cells] == [
        (CLEAN, None, 0),
        (RAPT, 50.0, 0),
        (RAPT, 75.0, 0),
        (CLEAN, None, 1),
        (RAPT, 50.0, 1),
        (RAPT, 75.0, 1),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("RAPT", "magic")}, "unknown arm='magic'"),
        ({"arms": ("RAPT", "RAPT")}, "arms must be named once each"),
        ({"seeds": ()}, "seeds must be named once each"),
        ({"seeds": (-1,)}, "every seed must be at least 0"),
        ({"etas": (0.0,)}, "every eta must be finite, above 0"),
        ({"etas": (75.0, 75.0)}, "every eta must be finite, above 0 and named once"),
        ({"etas": ()}, "must have an eta"),
        ({"privatizations": 0}, "privatizations must be at least 1"),
        ({"plain_tokens": 0}, "arms with plain tokens need some"),
        ({"method": "lora"}, "the arm 'longer prompt' needs a method with a prompt, got method='lora'; leave it out"),
        ({"arms": ("policy",)}, "the arm 'policy' needs an entity policy; give `policy`"),
        ({"arms": ("denoised",)}, "the arm 'denoised' needs a backbone that expects noise; give `denoised`"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        plan(**changes)


def test_further_cells_keep_the_setting_and_whatever_changes_a_number_changes_it():
    setting = plan().digest_setting(SPLIT)
    assert plan(etas=(50.0, 75.0), seeds=(0, 9), arms=(RAPT,)).digest_setting(SPLIT) == setting
    assert plan().digest_setting(replace(SPLIT, public=("a film",))) != setting
    for changes in (
        {"weight": 0.2},
        {"epochs": 4},
        {"mechanism": "exponential"},
        {"privatizations": 4},
        {"plain_drawn": "file"},
        {"precision": "bfloat16"},
    ):
        assert plan(**changes).digest_setting(SPLIT) != setting


def test_plain_tokens_are_a_files_or_a_records_as_the_plan_says():
    for drawn, of_each_record in (("file", 0), ("record", 3)):
        chosen = plan(plain_drawn=drawn, plain_tokens=8)
        made = FileMaker(chosen, load_vocabulary("bert-tiny")).training(TEXTS, eta=75.0, seed=0)
        assert (made.manifest.plain_tokens.fixed is None) == (drawn == "record")
        assert len({record.plain_tokens for record in made.records} - {None}) == of_each_record


def test_a_mechanism_without_a_proof_is_compared_only_where_that_is_said():
    vocabulary = load_vocabulary("bert-tiny")
    with pytest.raises(MechanismError, match="allow"):
        FileMaker(plan(mechanism="custext"), vocabulary).mechanism(5.0)
    assert (
        FileMaker(plan(mechanism="custext", allow_unproved=True), vocabulary).mechanism(5.0).setting.name == "custext"
    )

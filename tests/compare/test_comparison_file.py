"""A comparison that is read from a file, and run by one call."""

from __future__ import annotations

import json

import pytest

from rapt.compare import ComparisonPlan, TextFiles, compare_files, read_comparison
from rapt.compare.plan import CLEAN, PROMPT, USUAL
from rapt.errors import UsageError, VocabularyError

PLAN = """
model = "bert-tiny"
etas = [90]
seeds = 2
arms = ["clean", "without reconstruction"]
privatizations = 1
epochs = 1
prompt_length = 2
weight = 1

[options]

[texts]
training = "reviews.csv"
text_column = "sentence"
label_column = "verdict"
records = 12
"""


@pytest.fixture
def folder(tmp_path):
    words = {"bad": ("awful", "poor", "sad", "dull"), "good": ("great", "fine", "happy", "best")}
    lines = [f"the film was {words[label][n % 4]} in scene {n},{label}" for n in range(10) for label in words]
    (tmp_path / "reviews.csv").write_text("sentence,verdict\n" + "\n".join(lines) + "\n")
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def test_a_file_says_what_the_plan_and_the_texts_say(folder):
    found = read_comparison(folder / "plan.toml", out=folder / "out", processes=2)
    assert found.plan == ComparisonPlan(
        model="bert-tiny",
        etas=(90.0,),
        seeds=(0, 1),
        arms=(CLEAN, PROMPT),
        privatizations=1,
        epochs=1,
        prompt_length=2,
        weight=1.0,
    )
    expected = TextFiles(training=folder / "reviews.csv", text_column="sentence", label_column="verdict", records=12)
    assert found.texts == expected
    assert (found.out, found.processes) == (folder / "out", 2)


def test_one_call_runs_it_and_writes_the_report(folder):
    found = compare_files(read_comparison(folder / "plan.toml", out=folder / "out"))
    assert found.page == folder / "out" / "comparison.html"
    assert {item.arm for item in found.summary.accuracies} == {CLEAN, PROMPT}
    assert all(item.seeds == (0, 1) for item in found.summary.accuracies)
    assert json.loads((folder / "out" / "comparison.json").read_text())["training_records"] == 12


@pytest.mark.parametrize(
    ("more", "refused"),
    [('model = "bert-tiny"\ncrowds = [100]', UsageError), ('model = "none/such"', VocabularyError)],
)
def test_a_comparison_that_is_refused_leaves_no_folder_but_one_that_was_there(folder, more, refused):
    (folder / "plan.toml").write_text(PLAN.replace('model = "bert-tiny"', more))
    for out in (folder / "out", folder / "kept"):
        (folder / "kept").mkdir(exist_ok=True)
        with pytest.raises(refused):
            compare_files(read_comparison(folder / "plan.toml", out=out))
    assert not (folder / "out").exists()
    assert (folder / "kept").is_dir()


def test_arms_that_are_not_named_are_all_that_can_be_run(folder):
    (folder / "plan.toml").write_text(PLAN.replace('arms = ["clean", "without reconstruction"]', ""))
    assert read_comparison(folder / "plan.toml", out=folder / "out").plan.arms == USUAL


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 1", "epoch = 1", "1 fields of the file are unknown; choose among .*epochs"),
        ("epochs = 1", 'epochs = "1"', "the field epochs must be of another type, got str"),
        ("epochs = 1", "epochs = true", "the field epochs must be of another type, got bool"),
        ("etas = [90]", "etas = 90", "the field etas must be of another type, got int"),
        ("etas = [90]", "", "a comparison on privatized text must have an eta; give `etas`"),
        ('model = "bert-tiny"', "", "the file must have every field without a default"),
        ("records = 12", 'lines = "12"', r"1 fields of \[texts\] are unknown"),
        ("[texts]", "[text]", r"must have a table \[texts\]"),
        ("seeds = 2", "seeds = [", "must be TOML in UTF-8"),
    ],
)
def test_a_file_that_says_something_else_is_refused(folder, old, new, message):
    (folder / "plan.toml").write_text(PLAN.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        read_comparison(folder / "plan.toml", out=folder / "out")


def test_a_file_that_is_not_there_or_too_long_is_refused(folder):
    with pytest.raises(UsageError, match="must be readable"):
        read_comparison(folder / "none.toml", out=folder / "out")
    (folder / "plan.toml").write_text("#" * 200_000)
    with pytest.raises(UsageError, match="at most 100,000 bytes"):
        read_comparison(folder / "plan.toml", out=folder / "out")

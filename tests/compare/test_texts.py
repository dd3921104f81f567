import pytest

from rapt.compare.texts import read_split
from rapt.errors import CorpusError


def write(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


@pytest.fixture
def training(tmp_path):
    return write(tmp_path / "train.csv", [(f"text number {place}", "ab"[place % 2]) for place in range(20)])


def split(training, **changes):
    return read_split(
        training, **({"evaluation": None, "training_records": None, "evaluation_records": None} | changes)
    )


def test_no_text_is_both_trained_on_and_judged_on(training, tmp_path):
    judged = write(tmp_path / "dev.csv", [("text number 3", "b"), ("something else", "a")])
    for found in (split(training), split(training, evaluation=judged)):
        assert not set(found.training.texts) & set(found.evaluation.texts)
    assert len(split(training).evaluation) == 4
    assert len(split(training, evaluation=judged).training) == 19


def test_the_choice_depends_on_the_texts_and_not_on_their_order(training, tmp_path):
    lines = training.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    first, second = (split(path, training_records=5, evaluation_records=2) for path in (training, turned))
    assert first == second
    assert (len(first.training), len(first.evaluation)) == (5, 2)
    assert first.digest == second.digest


def test_the_choice_of_single_texts_is_what_it_was_before_there_were_pairs(training):
    # Frozen: `split(training).digest`, before `text_column_2`.
    assert split(training).digest == "4c44d04f40e6c3f37c6f00e7a2584d52dbb09626e9f4182a19832ab570e709c4"


def test_a_text_in_clear_is_in_no_repr(training):
    assert "number" not in repr(split(training))


def test_other_labels_have_another_digest(training, tmp_path):
    turned = write(tmp_path / "t.csv", [(f"text number {place}", "ba"[place % 2]) for place in range(20)])
    assert split(training).digest != split(turned).digest


def test_what_cannot_be_compared_is_refused(training, tmp_path):
    with pytest.raises(CorpusError, match="at least two classes, got 1"):
        split(write(tmp_path / "one.csv", [(f"text {place}", "a") for place in range(9)]))
    with pytest.raises(CorpusError, match="must occur in training, got 1 that do not"):
        split(training, evaluation=write(tmp_path / "new.csv", [("new", "c")]))
    with pytest.raises(CorpusError, match="needs texts to judge on, got 0"):
        split(write(tmp_path / "few.csv", [("one", "a"), ("two", "b")]))

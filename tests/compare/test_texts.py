from types import SimpleNamespace

import pytest

from rapt.compare.texts import LabelledTexts, Split, cut_texts, read_split
from rapt.errors import CorpusError, UsageError
from rapt.local.vocabulary import load_vocabulary


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


def test_seeds_take_turns_to_judge_on_each_fifth(training):
    found = split(training, cross_validate=True)
    usual = split(training)
    assert (found.training, found.evaluation) == (usual.training, usual.evaluation)
    assert found.digest != usual.digest
    judged = [text for turn in found.turns for text in turn.evaluation.texts]
    assert len(judged) == len(set(judged)) == 20
    for seed in range(10):
        turn = found.turn_of(seed)
        assert turn is found.turns[seed % 5]
        assert len(turn.training) == 16
        assert not set(turn.training.texts) & set(turn.evaluation.texts)
    assert "number" not in repr(found)


def test_what_five_fifths_leave_over_is_trained_on_in_every_turn(tmp_path):
    path = write(tmp_path / "more.csv", [(f"text number {place}", "ab"[place % 2]) for place in range(23)])
    turns = split(path, cross_validate=True).turns
    assert [(len(turn.training), len(turn.evaluation)) for turn in turns] == [(19, 4)] * 5
    judged = {text for turn in turns for text in turn.evaluation.texts}
    always = set.intersection(*(set(turn.training.texts) for turn in turns))
    assert (len(judged), len(always), judged & always) == (20, 3, set())


def test_pairs_of_a_turn_share_no_text_with_those_it_judges(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,other,label\n" + "".join(f"one {n // 2},two {n},{n % 2}\n" for n in range(40)))
    turns = split(path, text_column_2="other", cross_validate=True).turns
    assert min(len(turn.training) for turn in turns) < 32
    for turn in turns:
        assert not set(turn.training.texts + turn.training.seconds) & set(turn.evaluation.texts)


def test_turns_are_of_the_training_texts(training, tmp_path):
    judged = write(tmp_path / "dev.csv", [("something else", "a")])
    with pytest.raises(UsageError, match="cross-validation must judge on the texts to train on"):
        split(training, evaluation=judged, cross_validate=True)


def test_texts_are_cut_within_a_word_and_those_that_begin_alike_are_not_both_trained_on_and_judged_on():
    vocabulary, names = load_vocabulary("bert-tiny"), ("a", "b")
    long = "unbelievably" * 8  # WordPiece takes a longer word for one unknown token
    training = LabelledTexts(texts=("one two three four", "six seven eight", long), labels=(0, 1, 0), names=names)
    judged = LabelledTexts(texts=("one two five", long + "s"), labels=(0, 1), names=names)
    said: list[str] = []
    found = cut_texts(
        Split(training=training, evaluation=judged),
        vocabulary=vocabulary,
        most=2,
        narrator=SimpleNamespace(say=said.append),
    )
    assert said == [
        "cut after 2 tokens: 3 training texts and 2 evaluation texts; left out of training, as they now begin like a "
        "text that is judged: 2"
    ]
    for text in (*found.training.texts, *found.evaluation.texts):
        assert 1 <= len(vocabulary.encode([text])[0]) <= 2
    assert found.evaluation.texts[0] == "one two"
    assert found.training.texts == ("six seven",)  # the others begin as those that are judged
    assert (
        cut_texts(Split(training=training, evaluation=judged), vocabulary=vocabulary, most=10_000).training == training
    )
    with pytest.raises(UsageError, match="at least 1 token"):
        cut_texts(Split(training=training, evaluation=judged), vocabulary=vocabulary, most=0)
    with pytest.raises(UsageError, match="must begin otherwise than those that are judged, got none for truncate=2"):
        cut_texts(Split(training=training.at([0, 2]), evaluation=judged), vocabulary=vocabulary, most=2)

"""What texts and files show of themselves, counted by hand."""

from __future__ import annotations

import pytest

from manifest_material import hand_made_manifest
from rapt.errors import CorpusError
from rapt.local.own_texts import count_own_texts, measure_file
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.privatized_writer import write_privatized_file


def test_words_that_come_in_many_texts_are_counted_once_for_each_and_stop_words_are_not(tmp_path, bert_tiny):
    path = tmp_path / "texts.csv"
    lines = [
        f"the cancer and the cancer of {word}" for word in "one two three four five six seven eight nine ten".split()
    ]
    path.write_text("text\n" + "\n".join([*lines, "a single doctor", "a single Doctor"]) + "\n")
    found = count_own_texts(path, bert_tiny, shown=1)
    (cancer,), (the,) = bert_tiny.encode(["cancer", "the"])
    assert (found.texts, found.alike) == (12, 1)
    assert (found.often, found.most) == (1, 10)
    assert (found.counts[cancer], found.counts[the]) == (20, 20)
    assert bert_tiny.tokens(found.first[0]) == ["the", "cancer", "and", "the", "cancer", "of", "one"]
    assert "cancer" not in repr(found)
    assert str(cancer) not in repr(found)


def test_an_empty_corpus_is_refused(tmp_path, bert_tiny):
    path = tmp_path / "texts.csv"
    path.write_text("")
    with pytest.raises(CorpusError):
        count_own_texts(path, bert_tiny)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_shape_of_a_file_is_that_of_its_texts(tmp_path, pairs):
    texts = [(5, 6, 7), (1,), (1,), (5, 6, 7), (2, 3)]
    records = [
        PrivatizedRecord(
            token_ids=text, second_token_ids=(9, 8) if pairs and place else (4, 4, 4, 4) if pairs else None
        )
        for place, text in enumerate(texts)
    ]
    mechanism = MechanismSetting(name="laplace", parameters={"eta": 2.0})
    manifest = hand_made_manifest(model="toy", mechanism=mechanism, labels=None, pairs=pairs)
    path = tmp_path / "file"
    with write_privatized_file(path, manifest) as writer:
        for record in records:
            writer.write(record)
    found = measure_file(path)
    assert (found.texts, found.shortest, found.longest) == ((10, 1, 4) if pairs else (5, 1, 3))
    # One of three tokens again; of the seconds four are alike; a text of one token is alike by chance.
    assert found.alike == (1 + 3 if pairs else 1)
    assert found.median == 2

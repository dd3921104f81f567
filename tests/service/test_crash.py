"""SIGKILL at random moments: what was acknowledged is there and right, and no job has two results.

A moment is drawn from the time that the work of its phase takes, so it falls before, within and after it. Those of a
checkpoint are drawn from the 30 ms after the folder of states has changed: while one is written, named, or let go of.
"""

import json
import sqlite3
from threading import Event, Thread
from time import monotonic

import numpy as np
import pytest

from crash_processes import Processes
from rapt.errors import RaptError
from rapt.local.client import ServiceClient
from running_service import wait_until

PHASES = ("upload", "training", "checkpoint", "prediction")
VALUES = {"num_virtual_tokens": 4, "n_epochs": 40, "batch_size": 16, "reconstruction": {"weight": 0.1}}
METHOD = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": VALUES}}


class Story:
    """A client that writes down what the service has acknowledged, and checks it after every restart."""

    def __init__(self, folder, path, file):
        self.processes = Processes(folder)
        self.data = folder / "data"
        self.path = path
        self.file = file
        self.files, self.jobs, self.answers, self.digests = [], [], {}, {}

    def begin(self, client):
        """The undisturbed run, which all others must equal to the last bit."""
        self.upload(client)
        self.tune(client)
        done = client.wait(self.jobs[0], seconds_between=0.05)
        assert done.status == "succeeded"
        self.answers[done.fine_tuned_model] = client.classify(done.fine_tuned_model, self.file)

    def upload(self, client):
        self.files.append(client.upload(self.path).id)

    def tune(self, client):
        job = client.create_job(file_id=self.files[0], model="bert-tiny", method=METHOD, seed=3)
        self.jobs.append(job.id)

    def predict(self, client):
        (name, before), *_ = self.answers.items()
        assert client.classify(name, self.file) == before

    def work(self, phase, url, stop):
        """Do what the phase is about until the service is gone."""
        try:
            with ServiceClient(url) as client:
                while not stop:
                    if phase == "upload":
                        self.upload(client)
                    elif phase == "prediction":
                        self.predict(client)
                    else:
                        self.tune(client)
                        client.wait(self.jobs[-1], seconds_between=0.02)
        except RaptError:
            pass  # it was killed: whatever was not acknowledged may or may not be there

    def wait_for_a_state(self):
        """Until a state of a run comes or goes."""

        def names():
            return {path.name for path in (self.data / "checkpoints").iterdir()}

        before = names()
        wait_until(lambda: names() != before)

    def check(self, client):
        """All that was acknowledged is there, and right."""
        for file_id in self.files:
            kept = self.path.with_name("downloaded")
            client._service.download(f"/v1/files/{file_id}/content", kept)
            assert kept.read_bytes() == self.path.read_bytes()
        for job_id in self.jobs:
            done = client.wait(job_id, seconds_between=0.05)
            assert done.status == "succeeded", done.error_message
            self.digests[job_id] = client.model(done.fine_tuned_model).card.weights_sha256
        self.predict(client)

    def check_disk(self):
        """No job has two adapters, and there is nothing that no row names."""
        connection = sqlite3.connect(self.data / "rapt.sqlite3")
        named = [row[0] for row in connection.execute("SELECT adapter FROM models")]
        jobs = [row[0] for row in connection.execute("SELECT job_id FROM models WHERE step IS NULL")]
        checkpoints = list(connection.execute("SELECT step, adapter FROM models WHERE step IS NOT NULL"))
        connection.close()
        assert len(set(jobs)) == len(jobs)
        digests = {}
        for step, adapter in checkpoints:
            card = json.loads((self.data / "adapters" / adapter / "rapt.json").read_text())
            digests.setdefault(step, set()).add(card["weights_sha256"])
        assert digests
        assert all(len(found) == 1 for found in digests.values()), "checkpoints of one step must have the same weights"
        assert {path.name for path in (self.data / "adapters").iterdir()} == set(named)
        assert list((self.data / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "moments", [12, pytest.param(50, marks=pytest.mark.slow)], ids=lambda moments: f"{moments} moments"
)
def test_whatever_is_killed_nothing_that_was_acknowledged_is_lost(moments, tmp_path, training_path, training_file):
    rng = np.random.default_rng(moments)
    story = Story(tmp_path, training_path, training_file)
    try:
        with ServiceClient(story.processes.start(own_worker=False)) as client:
            start = monotonic()
            story.begin(client)
            length = monotonic() - start
        for moment in range(moments):
            phase, own_worker = PHASES[moment % len(PHASES)], bool(moment // len(PHASES) % 2)
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

"""A client that writes down what the service has acknowledged, and checks it after everything was killed."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sqlite3
from dataclasses import replace

from rapt.errors import NotFoundError, RaptError
from rapt.local.client import ServiceClient
from rapt.local.client.steps import take_steps
from rapt.wire.adapter_files import unpack_adapter
from running_service import save_privatized, wait_until

PHASES = ("upload", "training", "checkpoint", "prediction", "deletion")
VALUES = {"num_virtual_tokens": 4, "n_epochs": 20, "batch_size": 16, "reconstruction": {"weight": 0.1}}
# How long the client asks a service again that was killed, s: it is told to go on from the next one.
PATIENCE = 2.0
METHOD = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": VALUES}}


def ask(client, method, path, **others):
    """The answer to a request for which the client has no function."""
    return take_steps(client._service.ask(method, path, **others), client._http)


class Story:
    """What one client did to one service, over all its lives."""

    def __init__(self, folder, processes, path, file):
        self.processes = processes
        self.folder = folder
        self.data = folder / "data"
        self.path = path
        self.file = file
        self.files, self.jobs, self.gone, self.answers, self.digests = {}, [], [], {}, {}
        self.rounds = itertools.count()

    def begin(self, client):
        """The undisturbed run, which all others must equal to the last bit."""
        self.upload(client)
        self.training = next(iter(self.files))
        self.tune(client)
        done = self.wait(client, self.jobs[0])
        assert done.status == "succeeded"
        self.answers[done.fine_tuned_model] = client.classify(done.fine_tuned_model, self.file)
        self.adapter = client.adapter(done.fine_tuned_model)

    def upload(self, client):
        self.files[client.upload(self.path).id] = self.path

    def tune(self, client):
        job = client.create_job(file_id=self.training, model="bert-tiny", method=METHOD, seed=3)
        self.jobs.append(job.id)

    def predict(self, client):
        (name, before), *_ = self.answers.items()
        assert client.classify(name, self.file) == before

    def delete(self, client):
        """Two uploads of the same bytes, and an adapter: one upload and the adapter go, and the other upload later."""
        number = next(self.rounds)
        path = self.variant(number)
        ids = [client.upload(path).id for _ in range(2)]
        self.files[ids[0]] = path
        self.remove(client.delete_file, f"/v1/files/{ids[1]}", ids[1])
        model = self.imported(client, number)
        self.remove(client.delete_model, f"/v1/models/{model}", model)
        mine = [file for file, kept in self.files.items() if kept != self.path]
        for file in mine[:-2]:
            self.remove(client.delete_file, f"/v1/files/{file}", file)

    def remove(self, delete, place, name):
        """Until the deletion is acknowledged, what it names may be there or not."""
        self.files.pop(name, None)
        delete(name)
        self.gone.append(place)

    def variant(self, number):
        """The training file in another order: other bytes."""
        path = self.folder / f"variant-{number}.jsonl"
        turn = 1 + number % (len(self.file.records) - 1)
        records = self.file.records[turn:] + self.file.records[:turn]
        return save_privatized(replace(self.file, records=records), path)

    def imported(self, client, number):
        """The name of a model of bytes that no other has."""
        card = json.loads(self.adapter["rapt.json"])
        card["metrics"]["round"] = number
        form = {"card": json.dumps(card).encode(), "weights": self.adapter["adapter_model.safetensors"]}
        files = {name: (name, io.BytesIO(content), "application/octet-stream") for name, content in form.items()}
        return ask(client, "POST", "/v1/adapters", files=files)["id"]

    def work(self, phase, url, stop):
        """Do what the phase is about until the service is gone."""
        try:
            with ServiceClient(url, patience=PATIENCE) as client:
                while not stop:
                    if phase == "upload":
                        self.upload(client)
                    elif phase == "prediction":
                        self.predict(client)
                    elif phase == "deletion":
                        self.delete(client)
                    else:
                        self.tune(client)
                        self.wait(client, self.jobs[-1])
        except RaptError:
            pass  # it was killed: whatever was not acknowledged may or may not be there

    def wait(self, client, job_id):
        return client.wait(job_id, seconds_between=0.05, most_seconds_between=0.1)

    def wait_for_a_state(self):
        """Until a state of a run comes or goes."""

        def names():
            return {path.name for path in (self.data / "run_states").iterdir()}

        before = names()
        wait_until(lambda: names() != before)

    def check(self, client):
        """All that was acknowledged is there, and right; all that was deleted is gone."""
        downloaded = self.folder / "downloaded"
        for file_id, path in self.files.items():
            client.fetch_file(file_id, downloaded, overwrite=True)
            assert downloaded.read_bytes() == path.read_bytes()
        for place in self.gone:
            try:
                ask(client, "GET", place)
            except NotFoundError:
                continue
            raise AssertionError("what was deleted has come back")
        for job_id in self.jobs:
            done = self.wait(client, job_id)
            assert done.status == "succeeded", done.error_message
            self.digests[job_id] = client.model(done.fine_tuned_model).card.weights_sha256
        self.predict(client)

    def check_disk(self):
        """No job has two adapters, and there is nothing that no row names, nor a row that names nothing."""
        connection = sqlite3.connect(self.data / "rapt.sqlite3")
        jobs = [row[0] for row in connection.execute("SELECT job_id FROM models WHERE step IS NULL AND job_id > ''")]
        checkpoints = list(connection.execute("SELECT step, sha256 FROM models WHERE step IS NOT NULL"))
        named = {row[0] for row in connection.execute("SELECT sha256 FROM files UNION SELECT sha256 FROM models")}
        connection.close()
        assert len(set(jobs)) == len(jobs)
        blobs = {path.name: path.read_bytes() for path in (self.data / "blobs").glob("*/*")}
        assert set(blobs) == named
        assert all(hashlib.sha256(content).hexdigest() == name for name, content in blobs.items())
        digests = {}
        for step, blob in checkpoints:
            card = json.loads(unpack_adapter(blobs[blob])["rapt.json"])
            digests.setdefault(step, set()).add(card["weights_sha256"])
        assert digests
        assert all(len(found) == 1 for found in digests.values()), "checkpoints of one step must have the same weights"
        for folder in ("run_states", "incoming"):
            assert list((self.data / folder).iterdir()) == []

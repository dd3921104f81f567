import json
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

from code_material import code_bundle, codes_file
from job_material import messages_of, queue_job, run_job, runner_on, weights_of
from rapt.errors import UsageError
from rapt.service.adapter.adapter import adapter_from_files
from rapt.service.backbone.opening import load_served
from rapt.service.jobs.hyperparameters import config_from_json, method_to_json
from rapt.service.jobs.job_log import JobLog, load_job_logger
from rapt.service.jobs.job_run import MOST_CHECKPOINTS, MOST_EVENTS, ProgressEvents
from rapt.service.storage.callers import DEVELOPER, LOCAL
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import get_file
from rapt.service.storage.job_rows import ENDED, cancel_job, get_job, list_events, pause_job, resume_job
from rapt.service.storage.job_runs import claim_next_job, list_checkpoint_models, read_latest_run_state
from rapt.service.storage.model_rows import get_model, list_models, read_adapter_archive
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.tuning.tuner import Progress, ReconstructionConfig, TuningCancelled, TuningConfig
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.adapter_files import unpack_adapter
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.privatized_file import PrivatizedFile, seal_manifest
from running_service import save_privatized, wait_until
from stored_material import kept_bytes, tenant

SHORT = TuningConfig(
    prompt_length=4, epochs=4, batch_size=16, seed=3, reconstruction=ReconstructionConfig(weight=0.1, head_size=8)
)
ENDLESS = replace(SHORT, epochs=1000)


@pytest.fixture
def runner(store, backbones):
    thread = runner_on(store, backbones)
    thread.start()
    yield thread
    thread.close()


@pytest.fixture
def queue(store, backbones, training_path):
    """Put one job on the queue; returns its row."""

    def put(config=SHORT, content=training_path):
        return queue_job(store, backbones, content, config)

    return put


def claim(store):
    return claim_next_job(store, worker="worker-of-a-test", models=["bert-tiny"], now=3)


def models_of(store):
    return list_models(store, Cursor(newest_first=False), tenant=LOCAL).items


def checkpoints_of(store, job):
    return list_checkpoint_models(store, job.id, Cursor(newest_first=False), tenant=LOCAL).items


def adapter_of(store, model, backbones):
    return adapter_from_files(unpack_adapter(read_adapter_archive(store, model)), backbone=backbones["bert-tiny"])


def ended(store, job):
    return get_job(store, job.id, tenant=LOCAL).status in ENDED


def events_of(store, job):
    return list_events(store, job.id, Cursor(limit=1000, newest_first=False), tenant=LOCAL).items


def has_progress(store, job):
    return any(event.type == "metrics" for event in events_of(store, job))


def never():
    return False


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, reconstruction=None), TuningConfig(learning_rate=0.3)])
def test_a_stored_job_is_the_run_that_was_asked_for(config):
    stored = json.loads(json.dumps(method_to_json(config)))
    assert config_from_json(stored, seed=config.seed) == config


def test_a_job_ends_in_a_model_whose_adapter_loads(store, backbones, queue, training_file):
    queue()
    job = claim(store)
    run_job(store, job, backbones=backbones, should_stop=never)
    done = get_job(store, job.id, tenant=LOCAL)
    assert done.status == "succeeded"
    assert done.fine_tuned_model.startswith("ft:bert-tiny:local:rapt:")
    assert done.trained_tokens == 4 * training_file.manifest.tokens
    adapter = adapter_of(store, get_model(store, done.fine_tuned_model, tenant=LOCAL), backbones)
    assert adapter.card.plain_tokens == 4
    assert adapter.card.labels == ("no", "yes")


def test_the_last_epochs_checkpoint_is_the_result_and_each_has_an_adapter_that_loads(store, backbones, queue):
    queue()
    job = claim(store)
    run_job(store, job, backbones=backbones, should_stop=never)
    found = checkpoints_of(store, job)
    assert [model.step for model in found] == [4, 8, 12, 16]  # of 4 batches an epoch
    (result,) = models_of(store)
    # One mapping of names, from a step to its event, its checkpoint and the card.
    assert dict(found[-1].metrics) == adapter_of(store, result, backbones).card.metrics
    event = [item.data for item in events_of(store, job) if item.type == "metrics"][-1]
    assert event.keys() - {"total_steps", "epoch"} == found[-1].metrics.keys()
    digests = [adapter_of(store, model, backbones).card.weights_sha256 for model in (*found, result)]
    assert digests[3] == digests[4]
    assert len(set(digests)) == 4


@pytest.mark.parametrize(("epochs", "kept"), [(1, [1]), (10, list(range(1, 11))), (25, list(range(1, 26, 3)))])
def test_a_long_run_has_ten_checkpoints_at_most_and_always_its_last(store, backbones, queue, epochs, kept):
    queue(replace(SHORT, epochs=epochs, batch_size=64))  # one step an epoch
    job = claim(store)
    run_job(store, job, backbones=backbones, should_stop=never)
    assert len(kept) <= MOST_CHECKPOINTS
    assert [model.step for model in checkpoints_of(store, job)] == kept


def test_a_tenant_without_room_gets_its_model_without_checkpoints(store, backbones, queue, caplog):
    queue()
    job = claim(store)
    run_job(store, job, backbones=backbones, should_stop=never, tenant_bytes=1)
    assert checkpoints_of(store, job) == ()
    assert len(models_of(store)) == 1
    assert len(kept_bytes(store)) == 1 + 1  # its file
    assert f"job {job.id}: no room for the checkpoint of step 4" in caplog.text


def test_progress_is_reported_every_ten_steps_and_at_the_last(store, backbones, queue):
    queue()  # 4 epochs of 4 batches
    job = claim(store)
    run_job(store, job, backbones=backbones, should_stop=never)
    metrics = [event.data for event in events_of(store, job) if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [10, 16]
    losses = {"train_loss", "reconstruction_loss", "train_mean_token_accuracy"}
    assert set(metrics[0]) == {"step", "total_steps", "epoch"} | losses
    assert all(type(value) in (int, float) for data in metrics for value in data.values())


def test_figures_go_into_a_log_of_the_job_and_a_log_that_cannot_be_written_costs_the_log(
    store, backbones, queue, tmp_path, caplog
):
    logs = tmp_path / "logs"
    queue()
    job = claim(store)
    (logs / job.tenant).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that TensorBoard imports
        run_job(store, job, backbones=backbones, should_stop=never, log_folder=str(logs))
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(logs / job.tenant / job.id)).Reload()
    assert [point.step for point in found.Scalars("train_loss")] == [10, 16]
    events = list_events(store, job.id, Cursor(limit=100, newest_first=False), tenant=job.tenant).items
    told = [event.data["train_loss"] for event in events if event.data]
    assert [point.value for point in found.Scalars("train_loss")] == pytest.approx(told, rel=1e-6)
    assert set(found.Tags()["scalars"]) == set().union(*(event.data for event in events if event.data)) - {"step"}
    queue()
    other = claim(store)
    (logs / job.tenant / other.id).write_text("in the way")
    run_job(store, other, backbones=backbones, should_stop=never, log_folder=str(logs))
    assert get_job(store, other.id, tenant=other.tenant).status == "succeeded"
    assert "the log of a job ends" in caplog.text


@pytest.mark.filterwarnings("ignore")  # of packages that TensorBoard imports, and of its thread that finds no room
def test_a_disk_that_fills_ends_the_log_and_closing_it_raises_nothing(tmp_path, caplog):
    before = set(threading.enumerate())
    log = JobLog(str(tmp_path), tenant="clinic", job_id="job")
    log.add({"step": 1, "train_loss": 1.0})
    (file,) = (tmp_path / "clinic" / "job").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")  # TensorBoard opens the file for each write
    log.add({"step": 2, "train_loss": 1.0})
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)  # it writes, and ends when it cannot
    log.add({"step": 3, "train_loss": 1.0})
    log.close()
    assert "the log of a job ends: No space left on device" in caplog.text


OWN_LOGGER = """
import json
from pathlib import Path

class Log:
    def __init__(self, tenant, job):
        self.path = Path(__file__).with_name(f"{tenant}-{job}")

    def add(self, figures, *, step):
        with self.path.open("a") as stream:
            stream.write(json.dumps([step, dict(figures)]) + chr(10))
        if step == 3:
            raise RuntimeError("the patient")

    def close(self):
        self.path.with_suffix(".closed").touch()

nothing = None
"""


def test_a_logger_of_the_provider_is_given_numbers_and_ends_no_job(tmp_path, monkeypatch, caplog):
    (tmp_path / "own_logger.py").write_text(OWN_LOGGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    log = JobLog(None, tenant="clinic", job_id="job", logger="own_logger:Log")
    for step in (1, 3, 4):
        log.add({"step": step, "train_loss": 0.5, "epoch": 1, "note": "no number"})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "clinic-job").read_text().splitlines()]
    assert lines == [[step, {"train_loss": 0.5, "epoch": 1}] for step in (1, 3)]
    assert (tmp_path / "clinic-job.closed").exists()
    assert "the logger of a job ends: RuntimeError" in caplog.text
    assert "patient" not in caplog.text
    for name in ("own_logger:other", "own_logger:nothing", "own_logger", "no_such_module:Log", ""):
        with pytest.raises(UsageError, match="the setting job_logger must name a function as module:function"):
            load_job_logger(name)


def test_an_event_has_the_means_of_its_steps():
    reported = []
    events = ProgressEvents(lambda message, data: reported.append(data))
    for step in range(1, 13):
        losses = {"train_loss": step, "reconstruction_loss": 2 * step}
        events.add(Progress(step=step, steps=12, epoch=0, losses=losses, last=step == 12))
    assert [(data["train_loss"], data["reconstruction_loss"]) for data in reported] == [(5.5, 11.0), (11.5, 23.0)]


def test_a_long_run_does_not_fill_the_database():
    reported = []
    events = ProgressEvents(lambda message, data: reported.append(data))
    steps = 100_001
    for step in range(1, steps + 1):
        events.add(Progress(step=step, steps=steps, epoch=0, losses={"train_loss": 0}, last=step == steps))
    assert len(reported) <= MOST_EVENTS + 1
    assert reported[-1]["step"] == steps


def test_jobs_run_in_order_one_at_a_time(store, runner, queue):
    jobs = [queue(), queue()]
    runner.wake()
    wait_until(lambda: all(ended(store, job) for job in jobs))
    assert [get_job(store, job.id, tenant=LOCAL).status for job in jobs] == ["succeeded", "succeeded"]
    assert [model.job_id for model in models_of(store)] == [job.id for job in jobs]


def test_a_cancelled_job_stops_within_a_step_and_keeps_nothing(store, runner, queue):
    job, next_job = queue(ENDLESS), queue()
    runner.wake()
    wait_until(lambda: has_progress(store, job))
    cancel_job(store, job.id, caller=DEVELOPER, now=9)
    runner.cancel(job.id)
    wait_until(lambda: ended(store, next_job))  # the worker is free again
    assert get_job(store, job.id, tenant=LOCAL).status == "cancelled"
    assert get_job(store, next_job.id, tenant=LOCAL).status == "succeeded"
    assert [model.job_id for model in models_of(store)] == [next_job.id]
    assert len(checkpoints_of(store, next_job)) == 4
    # Of the other, the last checkpoint is the result, byte for byte; and the file of both.
    assert len(kept_bytes(store)) == 4 + 1


def test_a_cancelled_job_that_still_reached_its_end_publishes_nothing(store, backbones, queue):
    queue()
    job = claim(store)
    steps = []

    def cancel_late():  # the store knows, but the word does not reach the run in time
        steps.append(1)
        if len(steps) == 16:
            cancel_job(store, job.id, caller=DEVELOPER, now=9)
        return False

    run_job(store, job, backbones=backbones, should_stop=cancel_late, between_questions=float("inf"))
    assert get_job(store, job.id, tenant=LOCAL).status == "cancelled"
    assert models_of(store) == ()
    assert kept_bytes(store) == [get_file(store, job.training_file, tenant=LOCAL).sha256]


def test_a_file_that_was_damaged_on_the_disk_fails_its_job_and_not_the_worker(store, runner, queue, training_file):
    job = queue()
    path = next(store.directory.blobs.glob("*/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"#" + whole[101:])
    runner.wake()
    wait_until(lambda: ended(store, job))
    failed = get_job(store, job.id, tenant=LOCAL)
    assert (failed.status, failed.error_code) == ("failed", "damaged")
    after = queue()  # the same bytes again make good what was damaged
    runner.wake()
    wait_until(lambda: ended(store, after))
    assert get_job(store, after.id, tenant=LOCAL).status == "succeeded"


def test_an_unforeseen_error_leaves_its_class_and_not_its_message(store, backbones, queue, caplog):
    class Broken(dict):
        def __getitem__(self, name):
            raise KeyError("the patient said that")

    broken = runner_on(store, Broken(backbones))
    job = queue()
    broken.start()
    wait_until(lambda: ended(store, job))
    broken.close()
    failed = get_job(store, job.id, tenant=LOCAL)
    assert (failed.status, failed.error_code) == ("failed", "internal_error")
    assert "KeyError" in failed.error_message
    everything = failed.error_message + caplog.text + str(events_of(store, job))
    assert "patient" not in everything


def test_closing_queues_the_running_job_again_and_it_ends_as_it_would_have(store, backbones, queue):
    interrupted, control = queue(replace(SHORT, epochs=15)), queue(replace(SHORT, epochs=15))
    first = runner_on(store, backbones)
    first.start()
    wait_until(lambda: has_progress(store, interrupted))
    first.close()
    assert get_job(store, interrupted.id, tenant=LOCAL).status == "queued"
    second = runner_on(store, backbones)
    second.start()
    wait_until(lambda: ended(store, control))
    second.close()
    digests = {adapter_of(store, model, backbones).card.weights_sha256 for model in models_of(store)}
    assert len(models_of(store)) == 2
    assert len(digests) == 1  # the same seed on the same file: the interruption left no trace


def test_a_stopped_run_leaves_no_adapter(store, backbones, queue):
    queue()
    job = claim(store)
    with pytest.raises(TuningCancelled):
        run_job(store, job, backbones=backbones, should_stop=lambda: True)
    assert requeue_abandoned_jobs(store) == 1
    assert kept_bytes(store) == [get_file(store, job.training_file, tenant=LOCAL).sha256]


def test_the_model_is_the_one_of_the_service_whatever_the_file_calls_it(store, backbones, queue, training_path):
    first, rest = training_path.read_bytes().split(b"\n", 1)
    assert b'"model":"bert-tiny"' in first
    job = queue(content=first.replace(b'"model":"bert-tiny"', b'"model":"bert-mine"') + b"\n" + rest)
    run_job(store, claim(store), backbones=backbones, should_stop=never)
    assert get_job(store, job.id, tenant=LOCAL).status == "succeeded"


def test_a_paused_job_goes_on_where_it_stopped_to_the_same_weights(store, runner, queue):
    """And the undisturbed run beside it shows that the pause left no trace in the numbers."""
    job, control = queue(replace(SHORT, epochs=20)), queue(replace(SHORT, epochs=20))
    runner.wake()
    wait_until(lambda: has_progress(store, job))
    pause_job(store, job.id, caller=DEVELOPER, now=5)
    runner.cancel(job.id)
    wait_until(lambda: ended(store, control))
    state = read_latest_run_state(store, job)
    assert 0 < state.step < 20 * 4
    resume_job(store, job.id, caller=DEVELOPER, now=6)
    runner.wake()
    wait_until(lambda: ended(store, job))
    steps = [event.data["step"] for event in events_of(store, job) if event.type == "metrics"]
    assert steps == sorted(steps)  # no step was made twice
    digests = {
        json.loads(unpack_adapter(read_adapter_archive(store, model))["rapt.json"])["weights_sha256"]
        for model in models_of(store)
    }
    assert len(models_of(store)) == 2
    assert len(digests) == 1
    assert list(store.directory.run_states.iterdir()) == []


def test_a_state_that_was_damaged_costs_time_and_not_the_job(store, runner, queue):
    job = queue(replace(SHORT, epochs=20))
    runner.wake()
    wait_until(lambda: has_progress(store, job))
    pause_job(store, job.id, caller=DEVELOPER, now=5)
    runner.cancel(job.id)
    wait_until(lambda: read_latest_run_state(store, job) is not None)
    (folder,) = store.directory.run_states.iterdir()
    tensors = folder / "run_state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    resume_job(store, job.id, caller=DEVELOPER, now=6)
    runner.wake()
    wait_until(lambda: ended(store, job))
    assert get_job(store, job.id, tenant=LOCAL).status == "succeeded"


@pytest.fixture(scope="module")
def misleading_path(training_file, tmp_path_factory):
    """A validation file with every label turned around: the better a run learns, the higher its loss there."""
    records = tuple(replace(record, label=1 - record.label) for record in training_file.records)
    file = PrivatizedFile(manifest=seal_manifest(training_file.manifest, records), records=records)
    return save_privatized(file, tmp_path_factory.mktemp("misleading") / "validation.jsonl")


def test_a_run_that_stops_early_says_so_keeps_its_last_epoch_and_counts_what_it_read(
    store, backbones, training_path, training_file, misleading_path
):
    config = replace(SHORT, epochs=25, learning_rate=0.05, patience=2)
    job = queue_job(store, backbones, training_path, config, validation=misleading_path)
    run_job(store, claim(store), backbones=backbones, should_stop=never)
    done = get_job(store, job.id, tenant=LOCAL)
    assert done.status == "succeeded"
    metrics = [event.data for event in events_of(store, job) if event.type == "metrics"]
    losses = [data["full_valid_loss"] for data in metrics if "full_valid_loss" in data]
    epochs = len(losses)
    best = losses.index(min(losses)) + 1
    assert epochs == best + 2 < 25
    assert metrics[-1]["step"] == 4 * epochs
    assert done.trained_tokens == epochs * training_file.manifest.tokens
    assert checkpoints_of(store, job)[-1].step == 4 * epochs
    assert len(checkpoints_of(store, job)) <= MOST_CHECKPOINTS
    (said,) = [message for message in messages_of(store, job) if "stopped early" in message]
    assert f"after epoch {epochs} of 25, at step {4 * epochs}" in said
    assert f"lowest at step {4 * best}, {min(losses):.4f}" in said
    assert "patience=2" in said


def test_a_job_on_texts_of_another_kind_than_the_public_ones_says_that_it_taught_no_second_head(store, tmp_path):
    code = code_bundle(size=64, run=4)
    write_code_bundle(code, tmp_path / "codes", public_states=np.eye(6, dtype=np.float32))
    backbones = {"codes": load_served(str(tmp_path / "codes"), name="codes", precision="auto")}
    near = np.argsort(code.codewords[0] @ code.codewords[0, 0])[-4:]  # all texts lie on one side of the centre
    file = codes_file(code)
    records = tuple(replace(one, token_ids=(int(near[i % 4]),)) for i, one in enumerate(file.records))
    sealed = PrivatizedFile(manifest=seal_manifest(file.manifest, records), records=records)
    path = save_privatized(sealed, tmp_path / "texts.jsonl")
    job = queue_job(store, backbones, path, make_default_config("linear_probing"), model="codes")
    claimed = claim_next_job(store, worker="worker-of-a-test", models=["codes"], now=3)
    run_job(store, claimed, backbones=backbones, should_stop=never)
    assert len([message for message in messages_of(store, job) if "no second head was taught" in message]) == 1
    assert get_job(store, job.id, tenant=LOCAL).status == "succeeded"


def test_of_a_run_of_very_many_epochs_not_every_validation_is_an_event():
    reported = []
    events = ProgressEvents(lambda message, data: reported.append(data))
    for step in range(1, 4001):
        validation = {"full_valid_loss": 1.0} if step % 2 == 0 else {}
        losses = {"train_loss": 0.0}
        events.add(Progress(step=step, steps=4000, epoch=(step - 1) // 2, losses=losses, validation=validation))
    assert len(reported) <= 2 * MOST_EVENTS + 1
    assert sum("full_valid_loss" in data for data in reported) >= MOST_EVENTS


def test_a_long_job_gives_way_to_another_tenants_and_goes_on_to_the_same_weights(store, backbones, training_path):
    config = replace(SHORT, epochs=20)
    ada, bob = tenant(store, "ada"), tenant(store, "bob")
    control = queue_job(store, backbones, training_path, config, caller=ada)
    run_job(store, claim(store), backbones=backbones, should_stop=never)
    long = queue_job(store, backbones, training_path, config, caller=ada)
    runner = runner_on(store, backbones, slice_seconds=0.001, seconds_between_run_states=1000.0)
    runner.start()
    wait_until(lambda: get_job(store, long.id, tenant="ada").status == "running")
    short = queue_job(store, backbones, training_path, replace(SHORT, epochs=1), caller=bob)
    wait_until(lambda: get_job(store, long.id, tenant="ada").status in ENDED)
    runner.close()
    done, first = get_job(store, long.id, tenant="ada"), get_job(store, short.id, tenant="bob")
    assert (done.status, first.status, done.deaths, first.deaths) == ("succeeded", "succeeded", 0, 0)
    assert done.attempt == 1 + sum("gives way" in message for message in messages_of(store, long)) > 1
    names = [model.job_id for model in list_models(store, Cursor(newest_first=False), tenant="bob").items]
    assert names == [short.id]
    assert weights_of(store, long) == weights_of(store, control)


def test_a_job_of_the_same_tenant_waits_for_its_turn(store, backbones, training_path):
    first = queue_job(store, backbones, training_path, SHORT)
    queue_job(store, backbones, training_path, SHORT)
    run_job(store, claim(store), backbones=backbones, should_stop=never, slice_seconds=0.001, between_questions=0.0)
    assert get_job(store, first.id, tenant=LOCAL).status == "succeeded"

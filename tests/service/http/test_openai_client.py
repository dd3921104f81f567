"""The official client, as it comes from the package index, against the real service."""

import openai
import pytest

from http_requests import ENDLESS
from rapt.wire.privatized_file import dump_query, remove_labels
from running_service import running_service, wait_until

RUN = {"num_virtual_tokens": 4, "n_epochs": 3, "batch_size": 16, "reconstruction": {"weight": 0.1}}
METHOD = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": RUN}}
KEY = "a-key-of-the-provider-for-its-tenant"


@pytest.fixture(scope="module")
def client(backbones, tmp_path_factory):
    settings = {"admin_key": KEY}
    with (
        running_service(tmp_path_factory.mktemp("data"), backbones=backbones, settings=settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as official,
    ):
        yield official


@pytest.fixture
def file(client, training_path):
    with training_path.open("rb") as stream:
        return client.files.create(file=stream, purpose="fine-tune")


def queue(client, file, **changes):
    return client.fine_tuning.jobs.create(model="bert-tiny", training_file=file.id, method=METHOD, **changes)


def test_files_are_created_listed_read_and_deleted(client, file, training_path):
    assert (file.object, file.status, file.purpose) == ("file", "processed", "fine-tune")
    assert file.bytes == training_path.stat().st_size
    assert client.files.wait_for_processing(file.id).id == file.id
    assert file.id in [item.id for item in client.files.list(purpose="fine-tune")]
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == training_path.read_bytes()
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_job_is_created_followed_and_leaves_a_model(client, file):
    job = queue(client, file, seed=9, suffix="mine")
    assert (job.object, job.model, job.training_file, job.seed) == ("fine_tuning.job", "bert-tiny", file.id, 9)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status not in ("queued", "running"))
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded"
    assert job.error is None
    assert job.finished_at >= job.created_at
    assert job.trained_tokens == 3 * file.rapt["tokens"]
    assert job.fine_tuned_model.startswith("ft:bert-tiny:local:mine:")
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))  # several pages
    assert events[0].message == f"the model {job.fine_tuned_model} is ready"
    assert events[-1].message == "the job is queued"
    metrics = next(event for event in events if event.type == "metrics")
    assert (metrics.level, metrics.data["step"], metrics.data["total_steps"]) == ("info", 12, 12)
    assert metrics.data["train_loss"] > 0
    assert job.id in [item.id for item in client.fine_tuning.jobs.list(limit=1)]
    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.object, model.id) == ("model", job.fine_tuned_model)
    assert {"bert-tiny", model.id} <= {item.id for item in client.models.list()}
    assert client.models.delete(model.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model.id)


def test_a_job_is_asked_for_as_it_was_at_openai(client, file):
    """With whatever shape of it a client of that service has: the method by name, settings of older clients, nulls."""
    short = {"n_epochs": 1, "batch_size": 32, "learning_rate_multiplier": 0.5}
    asked = [
        {"method": {"type": "supervised", "supervised": {"hyperparameters": short}}, "integrations": None},
        {"hyperparameters": short, "suffix": None, "validation_file": None, "integrations": []},
        {"hyperparameters": short, "method": {"type": "supervised", "supervised": None}, "metadata": None},
    ]
    jobs = [client.fine_tuning.jobs.create(model="bert-tiny", training_file=file.id, seed=3, **one) for one in asked]
    resolved = [job.method.to_dict() for job in jobs]
    assert resolved[0] == resolved[1] == resolved[2]
    assert resolved[0]["type"] == "prompt_tuning"
    assert resolved[0]["prompt_tuning"]["hyperparameters"]["n_epochs"] == 1
    for job in jobs:
        client.fine_tuning.jobs.cancel(job.id)
    for refused, param in (
        ({"method": METHOD, "hyperparameters": short}, "hyperparameters"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "mine"}}]}, "integrations"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.fine_tuning.jobs.create(model="bert-tiny", training_file=file.id, **refused)
        assert error.value.param == param


def test_a_checkpoint_is_asked_by_its_name_like_any_model(client, file, training_file):
    job = queue(client, file, suffix="long-enough-that-a-cursor-of-it-is-more-than-sixty-four")
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
    job = client.fine_tuning.jobs.retrieve(job.id)
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))  # several pages
    assert [item.step_number for item in found] == [12, 8, 4]
    assert all(item.fine_tuning_job_id == job.id and item.metrics.train_loss > 0 for item in found)
    assert len({item.id for item in found}) == 3
    names = [item.fine_tuned_model_checkpoint for item in found]
    assert names == [f"{job.fine_tuned_model}:ckpt-step-{step}" for step in (12, 8, 4)]
    assert client.models.retrieve(names[0]).id == names[0]
    listed = [item.id for item in client.models.list(extra_query={"limit": 1})]
    assert job.fine_tuned_model in listed
    assert not set(names) & set(listed)
    query = dump_query(remove_labels(training_file))

    def answer(model):
        return client.completions.create(
            model=model,
            prompt=[record["token_ids"] for record in query["records"]],
            logprobs=2,
            extra_body={
                "rapt": {
                    "manifest": query["manifest"],
                    "records": [
                        {name: value for name, value in record.items() if name != "token_ids"}
                        for record in query["records"]
                    ],
                }
            },
        ).choices

    last, early = answer(names[0]), answer(names[2])
    assert last == answer(job.fine_tuned_model)
    assert last != early
    assert client.models.delete(names[1]).deleted
    assert [item.step_number for item in client.fine_tuning.jobs.checkpoints.list(job.id)] == [12, 4]
    assert client.models.delete(job.fine_tuned_model).deleted
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    with pytest.raises(openai.NotFoundError):
        answer(names[0])


def test_a_job_is_paused_and_resumed_to_the_end(client, file):
    before, job = (
        client.fine_tuning.jobs.create(
            model="bert-tiny",
            training_file=file.id,
            method={"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": RUN | values}},
        )
        for values in (ENDLESS, {})
    )
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
    with pytest.raises(openai.BadRequestError, match="to pause, got status=paused"):
        client.fine_tuning.jobs.pause(job.id)
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    client.fine_tuning.jobs.cancel(before.id)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
    with pytest.raises(openai.BadRequestError, match="to resume, got status=succeeded"):
        client.fine_tuning.jobs.resume(job.id)


def test_a_job_is_cancelled(client, file):
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": RUN | ENDLESS}}
    job = client.fine_tuning.jobs.create(model="bert-tiny", training_file=file.id, method=method)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_a_refusal_raises_the_clients_own_class_at_once(client, file, tmp_path):
    with pytest.raises(openai.BadRequestError) as error:
        queue(client, file, seed=-1)
    assert (error.value.code, error.value.param, error.value.type) == (
        "invalid_request",
        "seed",
        "invalid_request_error",
    )
    assert error.value.request_id.startswith("req_")
    (tmp_path / "plain.csv").write_text("text,label\nhello,1\n")
    with (
        pytest.raises(openai.BadRequestError, match="the first line must be"),
        (tmp_path / "plain.csv").open("rb") as stream,
    ):
        client.files.create(file=stream, purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another-key-of-somebody").models.list()


def test_a_conflict_is_not_tried_again(client, training_path, training_file):
    other = training_path.read_text().replace(training_file.manifest.vocabulary_hash, "sha256:" + "0" * 64)
    sent = []

    def count(request):
        sent.append(request.url)

    counting = openai.OpenAI(
        base_url=client.base_url,
        api_key=KEY,
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [count]}),
    )
    with counting, pytest.raises(openai.ConflictError):
        counting.files.create(file=("other", other.encode()), purpose="fine-tune")
    assert len(sent) == 1

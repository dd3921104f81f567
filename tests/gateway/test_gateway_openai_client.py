"""The official client, with another `base_url` and nothing else: files, jobs, completions, chats, classification."""

import json

import openai
import pytest

from running_service import wait_until

CHAT = [
    {"messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"the {food} was {taste}"},
                  {"role": "assistant", "content": answer}]}
    for food in ("soup", "bread", "fish", "cake")
    for taste, answer in (("good", "positive"), ("bad", "negative"))
]  # fmt: skip


def upload(client, records, name="reviews.jsonl"):
    content = "\n".join(json.dumps(record) for record in records).encode()
    return client.files.create(file=(name, content), purpose="fine-tune")


@pytest.fixture(scope="module")
def tuned(reading):
    """A model that was tuned as programs tune at OpenAI."""
    file = upload(reading, CHAT)
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
    job = reading.fine_tuning.jobs.create(
        model="bert-tiny", training_file=file.id, method=method, suffix="mine", metadata={"of": "the clinic"}, seed=1
    )
    wait_until(lambda: reading.fine_tuning.jobs.retrieve(job.id).status not in ("queued", "running"))
    job = reading.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def test_a_plain_training_file_becomes_a_privatized_one_of_the_service(reading):
    file = upload(reading, CHAT)
    assert (file.filename, file.rapt["records"], file.rapt["labels"]) == ("privatized.jsonl", 8, 2)
    content = reading.files.content(file.id).read()
    manifest, *records = [json.loads(line) for line in content.splitlines()]
    assert (manifest["labels"], len(records)) == (["negative", "positive"], 8)
    assert sum(record["label"] for record in records) == 4
    assert file.id in [item.id for item in reading.files.list(purpose="fine-tune")]
    assert reading.files.retrieve(file.id) == file
    assert upload(reading, CHAT).id == file.id  # repeated, it makes no second file
    assert reading.files.delete(file.id).deleted


def test_the_same_texts_leave_as_the_same_releases_whatever_the_form_of_their_file(reading):
    file = upload(reading, CHAT)
    rows = [(record["messages"][1]["content"], record["messages"][2]["content"]) for record in CHAT]
    table = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    forms = [
        upload(reading, [{"prompt": text, "completion": f" {label}"} for text, label in rows]),
        reading.files.create(file=("mine.csv", table.encode()), purpose="fine-tune"),
    ]
    found = [
        sorted(json.loads(line)["token_ids"] for line in reading.files.content(item.id).read().splitlines()[1:])
        for item in (file, *forms)
    ]
    assert found[0] == found[1] == found[2]


def test_a_supervised_job_is_followed_and_its_model_is_asked_in_three_ways(reading, tuned):
    assert tuned.id in [job.id for job in reading.fine_tuning.jobs.list(limit=5)]
    events = list(reading.fine_tuning.jobs.list_events(tuned.id, limit=2))
    assert events[0].message.endswith("is ready")
    checkpoint = next(iter(reading.fine_tuning.jobs.checkpoints.list(tuned.id)))
    name = tuned.fine_tuned_model
    assert "mine" not in name
    assert reading.models.retrieve(name).id in [model.id for model in reading.models.list()]
    answer = reading.completions.create(model=name, prompt=["the soup was good", "the cake was bad"], logprobs=2)
    assert {choice.text for choice in answer.choices} <= {"negative", "positive"}
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "the soup was good"}]
    chat = reading.chat.completions.create(model=checkpoint.fine_tuned_model_checkpoint, messages=messages)
    assert chat.choices[0].message.content in ("negative", "positive")
    found = reading.post("/classify", body={"model": name, "input": "the soup was good"}, cast_to=object)
    assert found["labels"] == ["negative", "positive"]


def test_a_chat_of_several_turns_is_written_whole_and_in_pieces_alike(writing):
    messages = [
        {"role": "system", "content": [{"type": "public_text", "text": "Be."}]},
        {"role": "user", "content": "it hurts"},
        {"role": "assistant", "content": "where"},
        {"role": "user", "content": [{"type": "text", "text": "the knee"}, {"type": "text", "text": "hip"}]},
    ]
    asked = {"model": "talker", "messages": messages, "temperature": 0, "max_tokens": 6}
    whole = writing.chat.completions.create(**asked).choices[0].message.content
    text = ""
    for event in writing.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            text += choice.delta.content or ""
        usage = event.usage
    assert text == whole
    assert usage.completion_tokens > 0
    assert writing.completions.create(model="talker", prompt="it hurts", max_tokens=3, user="me").choices[0].text


def test_a_target_without_classes_is_privatized_as_the_text_is(writing, writer_privatizer):
    records = [{"prompt": f"it hurts in the knee {number}", "completion": "rest and wait"} for number in range(4)]
    content = writing.files.content(upload(writing, records).id).read()
    manifest, *lines = [json.loads(line) for line in content.splitlines()]
    assert manifest["targets"] == "privatized"
    plain = writer_privatizer.contents(["rest and wait"])[0]
    assert all(len(line["target_ids"]) == len(plain) for line in lines)


def test_an_error_of_the_service_comes_through_by_name(reading, tuned):
    with pytest.raises(openai.BadRequestError, match=r"the service refused: a job must not have ended") as error:
        reading.fine_tuning.jobs.cancel(tuned.id)
    assert error.value.code == "invalid_request"
    with pytest.raises(openai.NotFoundError):
        reading.fine_tuning.jobs.retrieve("ftjob-" + "0" * 24)

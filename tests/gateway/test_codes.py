"""Whole texts under one ε, through the gateway to a real service of the codebook, by the official client."""

import json

import openai
import pytest

from code_material import code_privatizer
from rapt.gateway.training_files import TrainingSetting
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.opening import load_served
from rapt.wire.code_bundle import write_code_bundle
from running_gateway import KEY, running_gateway
from running_service import running_service, wait_until


@pytest.fixture(scope="module")
def privatizer():
    return code_privatizer(load_vocabulary("bert-tiny"), size=32, run=4)


@pytest.fixture(scope="module")
def client(privatizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    write_code_bundle(privatizer.mechanism.bundle, folder / "bundle")
    served = load_served(str(folder / "bundle"), name="reviews-codes", precision="auto")
    training = TrainingSetting(privatizer=privatizer, labels=("negative", "positive"))
    with (
        running_service(folder / "data", backbones={"reviews-codes": served}) as service,
        running_gateway(service, privatizer, ledger=folder / "ledger.sqlite", training=training) as url,
        openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as found,
    ):
        yield found


def chat(text, answer):
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
    return {"messages": [*messages, {"role": "assistant", "content": answer}]}


def test_a_model_of_codes_is_tuned_and_asked_and_a_text_is_one_codeword(client):
    texts = [(f"the {food} was {taste}", answer) for food in "abcdefgh" for taste, answer in RATED]
    content = "\n".join(json.dumps(chat(*one)) for one in texts).encode()
    file = client.files.create(file=("a.jsonl", content), purpose="fine-tune")
    manifest, *records = map(json.loads, client.files.content(file.id).read().splitlines())
    assert (manifest["schema"], len(records)) == ("rapt.codes/1", 16)
    assert {len(record["token_ids"]) for record in records} == {1}
    job = client.fine_tuning.jobs.create(model="reviews-codes", training_file=file.id, method={"type": "supervised"})
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status not in ("queued", "running"))
    name = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    said = client.chat.completions.create(model=name, messages=chat("the a was good", "")["messages"][:2])
    assert said.choices[0].message.content in ("negative", "positive")
    found = client.post("/classify", body={"model": name, "input": ["the a was good", "b"]}, cast_to=object)
    assert len(found["predictions"]) == 2
    turns = [*chat("the a was good", "well")["messages"], {"role": "user", "content": "and now"}]
    with pytest.raises(openai.BadRequestError, match="one message of the user") as error:
        client.chat.completions.create(model=name, messages=turns)
    assert error.value.param == "messages"


RATED = (("good", "positive"), ("bad", "negative"))


def test_an_answer_that_is_no_class_is_refused_by_its_record_and_never_quoted(client):
    content = "\n".join(json.dumps(chat("the soup", answer)) for answer in ("positive", "zeppelin")).encode()
    with pytest.raises(openai.BadRequestError, match="record 2 must have one of the 2 labels") as error:
        client.files.create(file=("a.jsonl", content), purpose="fine-tune")
    assert "zeppelin" not in str(error.value)

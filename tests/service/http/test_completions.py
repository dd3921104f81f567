"""Completions and chats through the official client, as it comes from the package index."""

import math
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import openai
import pytest

from closeness import assert_close
from rapt.errors import UsageError
from rapt.local.client import ServiceClient
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.backbone.frame import Turn
from rapt.service.http.assembly import load_backbones
from rapt.service.http.completion_schemas import MOST_PUBLIC
from rapt.service.http.routes.answering import Prompt
from rapt.service.http.routes.completions import Conversation, frame_chat
from rapt.service.http.settings import load_settings
from rapt.wire.manifest import dump_manifest
from rapt.wire.model_files import make_tokenizer
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, remove_labels, seal_manifest
from running_service import running_service, save_privatized, wait_until
from tiny_backbones import tiny_backbone, write_tiny_model
from tuning_material import manifest_for, separable_file

WRITERS = ("llama", "t5")
# Only system, user and assistant, of which no two come twice in a row.
TEMPLATE = (
    "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role or m.role == 'tool' %}"
    "{{ raise_exception(m.content) }}{% endif %}<{{ m.role[0] }}> {{ m.content }}.{% endfor %}"
)
SECRET = "the patient said that it hurts"


@pytest.fixture(scope="module")
def both(backbones, tmp_path_factory):
    """A real encoder, small random models that write, and one of them with a chat template."""
    writers = [tiny_backbone(kind, tmp_path_factory.mktemp(kind) / f"tiny-{kind}") for kind in WRITERS]
    folder = write_tiny_model("llama", tmp_path_factory.mktemp("talker") / "talker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    loaded = load_backbones(load_settings({"models": str(folder), "precision": "float32"}))
    return {**backbones, **{writer.model: writer for writer in writers}, **loaded}


@pytest.fixture(scope="module")
def url(both, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=both) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as official:
        yield official


@pytest.fixture(scope="module", params=WRITERS)
def writer(request, both):
    return both[f"tiny-{request.param}"]


@pytest.fixture(scope="module")
def chooser(client, backbones, tmp_path_factory):
    """Two models that choose among two classes."""
    training = separable_file(backbones["bert-tiny"], records=32)
    path = save_privatized(training, tmp_path_factory.mktemp("training") / "f.jsonl")
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    names = []
    for seed in (1, 2):
        method = {
            "type": "prompt_tuning",
            "prompt_tuning": {"hyperparameters": {"n_epochs": 2, "num_virtual_tokens": 3}},
        }
        job = client.fine_tuning.jobs.create(model="bert-tiny", training_file=file.id, method=method, seed=seed)
        wait_until(lambda job=job: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
        names.append(client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model)
    return names


def texts_for(backbone, count=3):
    eligible = backbone.bundle.eligible
    return [
        [int(eligible[(11 * number + 3 * place) % len(eligible)]) for place in range(4 + number)]
        for number in range(count)
    ]


def privacy(backbone, prompts, **more):
    records = [PrivatizedRecord(token_ids=tuple(ids)) for ids in prompts]
    manifest = seal_manifest(manifest_for(backbone, labels=None), records)
    return {"rapt": {"manifest": dump_manifest(manifest), **more}}


def written(backbone, ids, *, most, seed=0):
    """The likeliest continuation, from the batch itself."""
    batch = DecodingBatch(backbone)
    tokens = [batch.join([GenerationRow(token_ids=tuple(ids), most_tokens=most, sampling=Sampling(temperature=0))])[0]]
    while len(tokens) < most and tokens[-1].token_id != backbone.frame.eos_id:
        tokens.append(batch.step()[0])
    return [token for token in tokens if token.token_id != backbone.frame.eos_id]


def spelled(backbone, tokens):
    return make_tokenizer(backbone.bundle.tokenizer_json).decode([token.token_id for token in tokens])


def specials_in(backbone, tokens):
    special = make_tokenizer(backbone.bundle.tokenizer_json).get_added_tokens_decoder()
    return {token.token_id for token in tokens} & set(special)


def test_a_label_and_its_logprobs_come_as_a_completion(client, url, chooser, backbones):
    backbone = backbones["bert-tiny"]
    file = remove_labels(separable_file(backbone, records=5, seed=3))
    prompts = [list(record.token_ids) for record in file.records]
    answer = client.completions.create(
        model=chooser[0], prompt=prompts, logprobs=2, extra_body=privacy(backbone, prompts)
    )
    expected = httpx2.post(f"{url}/v1/classify", json={"model": chooser[0], **dump_query(file)}, trust_env=False).json()
    assert (answer.object, answer.model, len(answer.choices)) == ("text_completion", chooser[0], 5)
    for choice, prediction in zip(answer.choices, expected["predictions"], strict=True):
        assert (choice.text, choice.finish_reason) == (prediction["label"], "stop")
        found = {label: math.exp(logprob) for label, logprob in choice.logprobs.top_logprobs[0].items()}
        assert_close([found[label] for label in expected["labels"]], prediction["probabilities"], of=backbone)
        assert choice.logprobs.tokens == [choice.text]
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    assert answer.usage.completion_tokens == 5


def test_one_request_may_mix_models(client, chooser, backbones):
    backbone = backbones["bert-tiny"]
    prompts = texts_for(backbone, 4)
    models = [chooser[0], chooser[1], chooser[1], chooser[0]]
    mixed = client.completions.create(
        model=chooser[0], prompt=prompts, logprobs=2, extra_body=privacy(backbone, prompts, models=models)
    )
    for prompt, model, choice in zip(prompts, models, mixed.choices, strict=True):
        alone = client.completions.create(
            model=model, prompt=prompt, logprobs=2, extra_body=privacy(backbone, [prompt])
        ).choices[0]
        both = [answer.logprobs.top_logprobs[0] for answer in (choice, alone)]
        assert_close(*([found[label] for label in both[0]] for found in both), of=backbone)
    with pytest.raises(openai.BadRequestError, match="models=1"):
        client.completions.create(
            model=chooser[0], prompt=prompts, extra_body=privacy(backbone, prompts, models=models[:1])
        )


def test_texts_are_written_whole_and_in_pieces_alike(client, writer):
    prompts = texts_for(writer)
    asked = {
        "model": writer.model,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 9,
        "logprobs": 3,
        "extra_body": privacy(writer, prompts),
    }
    whole = client.completions.create(**asked)
    for prompt, choice in zip(prompts, whole.choices, strict=True):
        tokens = written(writer, prompt, most=9)
        assert_close(choice.logprobs.token_logprobs, [token.logprob for token in tokens], of=writer)
        assert choice.finish_reason == ("length" if len(tokens) == 9 else "stop")
        assert choice.text == spelled(writer, tokens)
        if "\N{REPLACEMENT CHARACTER}" not in "".join(choice.logprobs.tokens) and not specials_in(writer, tokens):
            assert choice.text == "".join(choice.logprobs.tokens)
        assert all(len(top) <= 3 for top in choice.logprobs.top_logprobs)
    assert whole.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in whole.choices)
    texts, ends, usage = [""] * 3, [None] * 3, None
    for event in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        usage = event.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def chat(writer, ids, **more):
    return {
        "model": writer.model,
        "messages": [{"role": "user", "content": [{"type": "token_ids", "token_ids": ids}]}],
        "extra_body": privacy(writer, [ids]),
        **more,
    }


def test_a_chat_is_the_same_text_streamed_or_not(client, writer):
    ids = texts_for(writer, 1)[0]
    whole = client.chat.completions.create(
        **chat(writer, ids, temperature=0, max_tokens=7, logprobs=True, top_logprobs=2)
    )
    assert (whole.object, whole.choices[0].message.role) == ("chat.completion", "assistant")
    assert len(whole.choices[0].logprobs.content) == len(written(writer, ids, most=7))
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    text, roles, end = "", [], None
    for event in client.chat.completions.create(
        **chat(writer, ids, temperature=0, max_completion_tokens=7, stream=True)
    ):
        assert event.object == "chat.completion.chunk"
        delta = event.choices[0].delta
        roles += [delta.role] if delta.role else []
        text += delta.content or ""
        end = event.choices[0].finish_reason or end
    assert (text, roles, end) == (whole.choices[0].message.content, ["assistant"], whole.choices[0].finish_reason)


def test_a_chat_with_a_bare_decoder_is_put_into_its_template_and_a_completion_is_not(client, both):
    talker = both["talker"]
    ids = texts_for(talker, 1)[0]
    framed = [*talker.chat.before, *ids, *talker.chat.after]
    assert len(framed) == len(ids) + 5
    spell = make_tokenizer(talker.bundle.tokenizer_json).decode
    for asked, wanted in (
        (client.chat.completions.create(**chat(talker, ids, temperature=0, max_tokens=7)).choices[0].message, framed),
        (
            client.completions.create(
                model="talker", prompt=ids, temperature=0, max_tokens=7, extra_body=privacy(talker, [ids])
            ).choices[0],
            ids,
        ),
    ):
        said = asked.content if hasattr(asked, "content") else asked.text
        assert said == spell([token.token_id for token in written(talker, wanted, most=7)])
    assert client.models.retrieve("talker").rapt["chat_template"] is True
    assert client.models.retrieve(next(iter(both))).rapt["chat_template"] is False


def test_the_projects_own_client_holds_the_conversation_that_the_official_one_holds(client, url, both, chooser):
    talker, asked = both["talker"], {"temperature": 0, "max_tokens": 3}

    def message(ids):
        manifest = manifest_for(talker, labels=("ill", "well"))
        return PrivatizedFile(manifest=manifest, records=(PrivatizedRecord(token_ids=tuple(ids), label=1),))

    def official(first, said=None, last=None):
        """The answer of the official client to one message, or to the last of two."""
        if said is None:
            return client.chat.completions.create(**chat(talker, first, **asked)).choices[0].message.content
        parts = (
            ("user", {"type": "token_ids", "token_ids": first}),
            ("assistant", {"type": "public_text", "text": said}),
            ("user", {"type": "token_ids", "token_ids": last}),
        )
        rapt = privacy(talker, [last], earlier=[privacy(talker, [first])["rapt"]["manifest"]])
        messages = [{"role": role, "content": [part]} for role, part in parts]
        return (
            client.chat.completions.create(model="talker", messages=messages, extra_body=rapt, **asked)
            .choices[0]
            .message.content
        )

    # Random weights write control characters at times, which this client takes from no service.
    for first in texts_for(talker, 12):
        last = [*first, first[0]]
        answers = [official(first)]
        if answers[0].isprintable() and answers[0]:
            answers.append(official(first, answers[0], last))
            if answers[1].isprintable():
                break
    with ServiceClient(url) as own:
        said = own.chat("talker", [message(first)], **asked)
        assert said.text not in repr(said)
        assert [said.text, own.chat("talker", [message(first), said, message(last)], **asked).text] == answers
        # A tuned model answers one message, with plain tokens beside it where it has some.
        queries = separable_file(both["bert-tiny"], records=2)
        one = replace(queries, records=queries.records[:1])
        assert own.chat(chooser[0], [one]).text == own.generate(chooser[0], one)[0].text
        for turns, words in ([], "last turn"), ([one, said], "last turn"), ([queries], "got records=2"):
            with pytest.raises(UsageError, match=words):
                own.chat("talker", turns)


def test_a_pair_and_a_tuned_model_are_put_into_the_template_whole_and_not_at_all(both):
    service = SimpleNamespace(backbones=both)
    alone = Conversation(turns=(Turn("user", (None,)),), earlier=())
    chat_frame = both["talker"].chat
    bare = Prompt(
        record=PrivatizedRecord(token_ids=(1, 2), second_token_ids=(3,)),
        backbone="talker",
        adapter=None,
        mechanism=manifest_for(both["talker"]).mechanism,
    )
    assert bare.texts == ((1, 2), (3,))
    assert frame_chat(service, alone, None, bare).texts == ((*chat_frame.before, 1, 2), (3, *chat_frame.after))
    tuned = replace(bare, adapter=object())
    assert frame_chat(service, alone, None, tuned).texts == ((1, 2), (3,))


def test_public_turns_travel_in_clear_beside_private_ones_of_which_each_has_its_manifest(client, both):
    talker = both["talker"]
    tokenizer = make_tokenizer(talker.bundle.tokenizer_json)
    first, last = texts_for(talker, 2)
    messages = [
        {"role": "developer", "content": [{"type": "public_text", "text": "in a word"}]},
        {"role": "user", "content": [{"type": "token_ids", "token_ids": first}], "name": None},
        {"role": "assistant", "content": [{"type": "public_text", "text": "ok"}], "refusal": None, "tool_calls": []},
        {
            "role": "user",
            "content": [{"type": "public_text", "text": "sum up: "}, {"type": "token_ids", "token_ids": last}],
        },
    ]
    around = ("<s> in a word.<u> ", ".<a> ok.<u> sum up: ", ".")
    pieces = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in around]
    whole = [*pieces[0], *first, *pieces[1], *last, *pieces[2]]
    rapt = {**privacy(talker, [last])["rapt"], "earlier": [privacy(talker, [first])["rapt"]["manifest"]]}
    asked = {"model": "talker", "temperature": 0, "max_tokens": 7}
    answer = client.chat.completions.create(messages=messages, extra_body={"rapt": rapt}, **asked)
    assert answer.choices[0].message.content == spelled(talker, written(talker, whole, most=7))
    assert answer.usage.prompt_tokens == len(whole)
    sent = {"messages": messages, "extra_body": {"rapt": rapt}}
    other = [tokens[::-1] for tokens in (first, last)]
    public = {"type": "public_text", "text": SECRET * (MOST_PUBLIC // len(SECRET) // 16)}
    for change, param, words in [
        ({"extra_body": {"rapt": {**rapt, "earlier": []}}}, "rapt.earlier", "a manifest of its own"),
        ({"extra_body": privacy(talker, [first]) | {"earlier": []}}, "earlier", "must be left out|no field"),
        ({"extra_body": {"rapt": {**rapt, "earlier": [rapt["manifest"]]}}}, "rapt.earlier", "manifest"),
        ({"extra_body": {"rapt": {**rapt, "earlier": [{"schema": SECRET}]}}}, "rapt.earlier", "manifest"),
        ({"messages": messages[:-1]}, "messages", "the last message must be the user's"),
        ({"messages": [*messages[:2], messages[1], messages[3]]}, "rapt.earlier", "a manifest of its own"),
        ({"messages": [messages[1], *messages[1:]]}, "rapt.earlier", "a manifest of its own"),
        ({"messages": [messages[0], *messages]}, "messages", "chat template"),
        ({"messages": [{**messages[0], "content": [public] * 16}] * 2 + messages[1:]}, "messages", "at most"),
        ({"messages": [{**messages[0], "content": [public] * 17}, *messages[1:]]}, "messages.content", ""),
        ({"messages": [{**messages[0], "content": SECRET}, *messages[1:]]}, "messages.content", "public_text"),
        ({"messages": [{**messages[0], "content": [{**public, "text": "\U0010fe01"}]}, *messages[1:]]}, "messages", ""),
        ({"messages": messages * 20}, "messages", ""),
        ({"model": both["tiny-llama"].model}, "messages", "a model without a chat template"),
        (
            {"messages": [*messages[:1], {**messages[1], "content": messages[1]["content"] * 2}, *messages[2:]]},
            None,
            "",
        ),
        (
            {"messages": [*messages[:3], {**messages[3], "content": [{"type": "token_ids", "token_ids": other[1]}]}]},
            None,
            "",
        ),
    ]:
        with pytest.raises(openai.APIStatusError, match=words or None) as error:
            client.chat.completions.create(**{**asked, **sent, **change})
        assert "patient" not in str(error.value)
        assert error.value.status_code in (400, 413)
        assert param is None or error.value.param == param, str(error.value)


def test_a_seed_makes_a_draw_again(client, writer):
    ids = texts_for(writer, 1)[0]
    first, again, other = (
        client.chat.completions.create(**chat(writer, ids, seed=seed, max_tokens=12)).choices[0].message.content
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_an_answer_ends_before_a_text_that_was_named_whole_and_in_pieces(client, writer):
    ids = texts_for(writer, 1)[0]
    asked = {"seed": 1, "max_tokens": 20}
    text = client.chat.completions.create(**chat(writer, ids, **asked)).choices[0].message.content
    # A body has no control characters, and small random models write some.
    pieces = (text[at : at + size] for size in (4, 3, 2) for at in range(1, len(text) - size + 1))
    stop = next(piece for piece in pieces if piece.isprintable())
    for stops in (stop, ["of-no-text", stop]):
        choice = client.chat.completions.create(**chat(writer, ids, stop=stops, **asked)).choices[0]
        assert (choice.message.content, choice.finish_reason) == (text[: text.find(stop)], "stop")
    events = list(client.chat.completions.create(**chat(writer, ids, stop=stop, stream=True, **asked)))
    assert "".join(event.choices[0].delta.content for event in events) == text[: text.find(stop)]
    assert [event.choices[0].finish_reason for event in events][-1] == "stop"
    unmet = client.chat.completions.create(**chat(writer, ids, stop="of-no-text", **asked)).choices[0]
    assert unmet.message.content == text
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**chat(writer, ids, stop=[SECRET] * 5, **asked))
    assert "patient" not in str(error.value)


def test_a_reader_that_leaves_in_the_middle_leaves_room(client, writer):
    ids = texts_for(writer, 1)[0]
    for _ in range(20):  # more than are written at once
        with client.chat.completions.create(**chat(writer, ids, max_tokens=50, stream=True)) as stream:
            next(iter(stream))
    assert client.chat.completions.create(**chat(writer, ids, max_tokens=2)).usage.completion_tokens <= 2


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"prompt": SECRET}, openai.BadRequestError),
        ({"prompt": [SECRET]}, openai.BadRequestError),
        ({"prompt": []}, openai.BadRequestError),
        ({"prompt": [[]]}, openai.BadRequestError),
        ({"prompt": [-1]}, openai.BadRequestError),
        ({"prompt": [2205]}, openai.BadRequestError),
        ({"extra_body": {}}, openai.BadRequestError),
        ({"extra_body": {"rapt": {"manifest": {"schema": SECRET}}}}, openai.BadRequestError),
        ({"extra_body": {SECRET: 1}}, openai.BadRequestError),
        ({"suffix": SECRET}, openai.BadRequestError),
        ({"max_tokens": 10_000}, openai.BadRequestError),
        ({"model": "bert-tiny"}, openai.ConflictError),
        ({"model": SECRET}, openai.NotFoundError),
    ],
    ids=str,
)
def test_what_is_not_a_privatized_prompt_is_refused_without_a_word_of_it(client, writer, change, kind):
    ids = texts_for(writer, 1)[0]
    asked = {"model": writer.model, "prompt": ids, "extra_body": privacy(writer, [ids])} | change
    for stream in (False, True):
        with pytest.raises(kind) as error:
            client.completions.create(**asked, stream=stream)
        assert "patient" not in str(error.value)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": SECRET}],
        [{"role": "system", "content": SECRET}],
        [{"role": "user", "content": [{"type": "text", "text": SECRET}]}],
        [],
    ],
    ids=str,
)
def test_a_chat_of_text_is_refused_without_a_word_of_it(client, writer, messages):
    asked = chat(writer, texts_for(writer, 1)[0]) | {"messages": messages}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**asked)
    assert "patient" not in str(error.value)


def test_an_encoder_writes_no_text(client, backbones):
    backbone = backbones["bert-tiny"]
    prompts = texts_for(backbone, 1)
    with pytest.raises(openai.BadRequestError, match="by a decoder or an encoder-decoder"):
        client.completions.create(model="bert-tiny", prompt=prompts, extra_body=privacy(backbone, prompts))


@pytest.mark.parametrize(("count", "status"), [(2, 200), (900, 413)])
def test_so_many_likeliest_tokens_are_told_in_one_answer(client, both, count, status):
    """512 texts of 58 tokens with 20 of each kept every other request waiting while they were made into JSON."""
    writer = both["tiny-llama"]
    prompts = texts_for(writer, 1) * count
    body = {"model": writer.model, "prompt": prompts, "max_tokens": 15, "logprobs": 20, **privacy(writer, prompts)}
    answer = httpx2.post(f"{client.base_url}completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == status


def test_texts_that_could_never_wait_together_are_too_large_and_not_too_early(both, tmp_path):
    backbone = both["tiny-llama"]
    with (
        running_service(tmp_path, backbones=both, settings={"max_waiting_tokens": 100}) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as small,
    ):
        prompts = texts_for(backbone, 3)
        ask = {"model": backbone.model, "temperature": 0}
        with pytest.raises(openai.APIStatusError, match="must take at most 50 tokens") as error:
            small.completions.create(prompt=prompts, max_tokens=20, extra_body=privacy(backbone, prompts), **ask)
        assert error.value.status_code == 413
        answer = small.completions.create(prompt=prompts, max_tokens=2, extra_body=privacy(backbone, prompts), **ask)
        assert len(answer.choices) == 3
        one = prompts[:1]
        # One text alone may be longer: it waits for nobody.
        assert small.completions.create(prompt=one, max_tokens=60, extra_body=privacy(backbone, one), **ask).choices

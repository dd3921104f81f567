import openai
import pytest

from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from recording_proxy import Recorder
from running_gateway import KEY, running_gateway, token_privatizer, training_setting
from running_service import running_service
from tiny_backbones import write_tiny_model

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}> {{ m.content }}.{% endfor %}"


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """A real encoder, and a small random model that writes, with a chat template."""
    folder = write_tiny_model("llama", tmp_path_factory.mktemp("talker") / "talker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return load_backbones(load_settings({"models": ("bert-tiny", str(folder)), "precision": "float32"}))


@pytest.fixture(scope="session")
def service(backbones, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


@pytest.fixture(scope="session")
def recorder():
    """What the service was sent, byte for byte."""
    return Recorder()


@pytest.fixture(scope="session")
def recorded(service, recorder):
    with recorder.through(service) as url:
        yield url


def official(url):
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


@pytest.fixture(scope="session")
def reader_privatizer(backbones):
    return token_privatizer(backbones["bert-tiny"].bundle, truncate_to=40)


@pytest.fixture(scope="session")
def reading(recorded, reader_privatizer, tmp_path_factory):
    """The official client of a gateway to the encoder, with two classes."""
    training = training_setting(reader_privatizer, labels=("negative", "positive"))
    ledger = tmp_path_factory.mktemp("reading") / "ledger.sqlite"
    with running_gateway(recorded, reader_privatizer, ledger=ledger, training=training) as url, official(url) as client:
        yield client


@pytest.fixture(scope="session")
def writer_privatizer(backbones):
    return token_privatizer(backbones["talker"].bundle)


@pytest.fixture(scope="session")
def writing(recorded, writer_privatizer, tmp_path_factory):
    """The official client of a gateway to the model that writes."""
    ledger = tmp_path_factory.mktemp("writing") / "ledger.sqlite"
    training = training_setting(writer_privatizer)
    with running_gateway(recorded, writer_privatizer, ledger=ledger, training=training) as url, official(url) as client:
        yield client

"""A real gateway on a free port of loopback, in a thread of the test, and what its programs send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

from rapt.gateway.releases import open_releases
from rapt.gateway.server import create_gateway, listen, name_address, serve_on
from rapt.gateway.training_files import TrainingSetting
from rapt.gateway.upstream import Upstream
from rapt.local.client import ServiceClient
from rapt.local.ledger import open_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary
from rapt.own_page.routes import OPEN_PATHS, open_page
from rapt.wire.manifest import NO_PLAIN_TOKENS

KEY = "k" * 43


def token_privatizer(bundle, *, eta=1.0, **others):
    """Tokens of a model, at an η at which next to none stays as it is."""
    vocabulary = Vocabulary(bundle)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    return Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=NO_PLAIN_TOKENS, **others)


def training_setting(privatizer, *, plain=2, **others):
    if plain:
        rng = secure_stream().generator
        plan = plan_plain_tokens(privatizer.vocabulary, count=plain, pool_size=8, drawn="record", rng=rng)
        privatizer = privatizer.with_plain_tokens(plan)
    return TrainingSetting(privatizer=privatizer, **others)


@contextmanager
def running_gateway(
    service: str,
    privatizer,
    *,
    ledger: Path,
    training: TrainingSetting | None = None,
    stream=None,
    page=False,
    **others,
) -> Iterator[str]:
    """The `base_url` of a gateway that runs until the end of the block; further arguments are `create_gateway`'s."""
    ready: Queue = Queue()
    with (
        listen("127.0.0.1", 0) as listener,
        open_releases(privatizer, lambda: open_ledger(ledger), stream=stream) as releases,
    ):
        training = TrainingSetting(privatizer=privatizer) if training is None else training
        upstream = Upstream(service)
        if page:
            others |= {"open_paths": OPEN_PATHS}
            others["pages"] = open_page(upstream, releases, training, lambda: ServiceClient(service)).routes()
        app = create_gateway(upstream, releases, training, key=KEY, **others)

        def run() -> None:
            try:
                serve_on(listener, app, on_ready=ready.put)
            except BaseException as error:
                ready.put(error)

        thread = Thread(target=run, name="gateway")
        thread.start()
        server = ready.get(timeout=60)
        if isinstance(server, BaseException):
            thread.join()
            raise server
        try:
            yield name_address(listener)
        finally:
            server.should_exit = True
            thread.join()

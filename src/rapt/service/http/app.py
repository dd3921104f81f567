"""The HTTP application: routes, and what surrounds them."""

from __future__ import annotations

from typing import Final

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from rapt.service.http.assembly import Service
from rapt.service.http.bodies import THREADS
from rapt.service.http.door import Door
from rapt.service.http.http_errors import add_error_handlers
from rapt.service.http.middleware import BodyLimit, Envelope, Stopping
from rapt.service.http.quotas import TenantPlaces
from rapt.service.http.routes.admin import make_admin_router, make_health_router, make_key_router
from rapt.service.http.routes.cacheable import make_code_router, make_page_router, make_vocabulary_router
from rapt.service.http.routes.classify import make_classify_router
from rapt.service.http.routes.completions import chat_router, completion_router
from rapt.service.http.routes.files import make_file_router, make_upload_router
from rapt.service.http.routes.jobs import make_job_router
from rapt.service.http.routes.models import make_adapter_router, make_model_router
from rapt.service.http.routes.pools import make_pool_router
from rapt.service.http.schemas import ErrorResponse
from rapt.service.http.shares import Metered
from rapt.version import __version__

DESCRIPTION = """
Tuning and prediction on text that was privatized before it came here. The official `openai` clients drive files, jobs,
events, models, completions and chats; `/v1/classify` and `/v1/vocabularies` are our own.

The service cannot tell privatized from plain text. It demands a manifest and refuses what contradicts it: that guards
against mistakes, not against a client that lies.
"""

# The door asks for the key; this only says so in the description of the API.
_KEY_IN_THE_DESCRIPTION: Final = Depends(HTTPBearer(auto_error=False, description="an API key of a tenant"))


def create_app(service: Service, *, stopping: Stopping) -> FastAPI:
    """The application of an open service; `stopping` ends the answers that are on their way."""
    app = FastAPI(
        title="rapt",
        version=__version__,
        description=DESCRIPTION.strip(),
        # The pages would load their scripts from elsewhere.
        docs_url=None,
        # A redirection names the scheme by which a proxy asked: a client that follows it would send its key in clear.
        redirect_slashes=False,
        redoc_url=None,
        # Spans and metrics would carry paths and messages of errors to wherever the environment says.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
        separate_input_output_schemas=False,
    )
    add_error_handlers(app)
    app.state.body_threads = CapacityLimiter(THREADS)
    # The last one added is outermost.
    app.add_middleware(BodyLimit, settings=service.settings)
    app.add_middleware(TenantPlaces, settings=service.settings, store=service.store)
    app.add_middleware(Door, settings=service.settings, store=service.store)
    app.add_middleware(Envelope, count=service.metrics.count, stopping=stopping)
    app.add_middleware(Metered)
    for router in (
        # In this order they are tried for a path, and predictions are what is asked most.
        make_classify_router,
        completion_router,
        chat_router,
        make_file_router,
        make_upload_router,
        make_job_router,
        make_model_router,
        make_adapter_router,
        make_vocabulary_router,
        make_code_router,
        make_pool_router,
        make_key_router,
        make_admin_router,
    ):
        app.include_router(router(service), dependencies=[_KEY_IN_THE_DESCRIPTION])
    app.include_router(make_health_router(service))
    if service.settings.page:
        app.include_router(make_page_router())
    return app

"""A request and what is known about it, until its response is sent."""

import time

from starlette.requests import Request

from serve_app.config import ApiKey
from serve_app.jobs import Job
from serve_app.meter import ModelMeter
from serve_app.results import Result
from serve_app.service.alias import Alias
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.dialect import Dialect
from serve_app.web.limits import RequestBody


class Exchange:
    """One request on its way through the handler."""

    __slots__ = (
        *("alias", "body", "dialect", "job", "key", "read_s", "request", "result", "route"),
        *("service", "started_s"),
    )

    def __init__(self, request: Request, dialect: Dialect, route: str = "") -> None:
        """Creates an exchange before its body is read.

        Args:
            request: the request.
            dialect: renders errors; replaced once the body has selected another one.
            route: the path with its parameters as they were declared, for the metrics.
        """
        self.request = request
        self.dialect = dialect
        self.body = RequestBody(request.receive)
        self.route = route
        self.started_s = time.perf_counter()
        self.read_s: float | None = None  #: when the body had arrived; None: it has not
        self.key: ApiKey | None = None
        self.service: EmbedService | None = None
        self.alias: Alias | None = None  #: of two models, under which the service was requested
        self.job: Job[Result] | None = None
        self.result: Result | None = None

    def meter(self, catalog: Catalog) -> ModelMeter:
        """Returns the meter of the request's model; without a name if none was selected."""
        return catalog.meter.for_model("") if self.service is None else self.service.meter

    def observe(self) -> None:
        """Passes the answer to the alias under which its model was requested, for a comparison."""
        if self.alias and self.service and self.job is not None and self.result is not None:
            self.alias.observe(self.service, self.job, self.result)

    def space_header(self, catalog: Catalog) -> dict[str, str]:
        """Returns `x-embedding-space`, unless several models are served and none was selected."""
        service = self.service
        if service is None and len(catalog.services) == 1:
            service = catalog.default
        return {} if service is None else {"x-embedding-space": service.spec.space_id}

"""The request headers of routes that run a job, as OpenAPI parameters."""

from typing import Any

from serve_app.web.schema.fields import SchemaContext
from serve_app.web.schema.json_schema import enum


def header_parameters(context: SchemaContext, *, has_lanes: bool) -> list[dict[str, Any]]:
    """Returns the parameters.

    Args:
        context: the models.
        has_lanes: whether the route's texts are scheduled by lane.
    """
    spaces = dict.fromkeys(spec.space_id for spec in context.specs)
    parameters = [
        {
            "name": "x-request-timeout-s",
            "in": "header",
            "description": "Time limit in seconds, if it is lower than the service's own; after it "
            "the response is a 504, and texts that are still queued are not computed.",
            "schema": {
                "type": "string",
                "pattern": r"^([1-9]\d{0,5}(\.\d{1,3})?|0\.\d{0,2}[1-9])$",
            },
        },
        {
            "name": "x-embedding-space",
            "in": "header",
            "description": "The space that the reply must be comparable with. A model of another "
            "one doesn't run: the response is a 409.",
            "schema": enum(tuple(spaces)),
        },
    ]
    if has_lanes:
        parameters.append(
            {
                "name": "x-priority",
                "in": "header",
                "description": "Scheduling lane: `interactive` texts are computed before `bulk` "
                "texts.",
                "schema": enum(("interactive", "bulk")),
            }
        )
    return parameters

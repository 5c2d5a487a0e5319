"""What a snapshot says of a model besides its rates."""

from typing import NamedTuple

from serve_app.live.snapshot import ModelState


class ModelStatus(NamedTuple):
    """A served model."""

    name: str
    task: str
    is_priced: bool
    state: ModelState | None = None  #: None: not known yet
    engine: str | None = None  #: None: no replica describes it
    precision: str | None = None

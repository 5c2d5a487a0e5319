"""Counts what one job had to compute, for its cost."""

from serve_app.service.backend import Backend
from serve_app.types import Outputs, TextGroup


class ComputedInputs:
    """The inputs of the model, and their tokens, that were computed for one job.

    The tiers of a result can't tell them: inputs of a job may be equal, and a text in chunks, or a
    pair scored by MaxSim, may be cached in part.
    """

    def __init__(self, backend: Backend) -> None:
        """Counts the outputs of `backend`."""
        self._backend = backend
        self.count = 0
        self.tokens = 0

    async def run(self, group: TextGroup) -> Outputs:
        """Returns the outputs of a group, and counts those that were computed."""
        outputs = await self._backend.run(group)
        self.count += outputs.computed_count
        self.tokens += outputs.computed_tokens
        return outputs

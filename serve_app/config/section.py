"""What every part of the tree of settings has in common."""

from pydantic import BaseModel, ConfigDict

MIB = 1 << 20
GIB = 1 << 30


class Section(BaseModel):
    """A part of the tree: it knows all its fields, and nothing changes them."""

    # What was given is in no error: a password or a key may stand where it doesn't belong.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

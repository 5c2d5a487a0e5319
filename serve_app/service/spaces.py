"""Which vector spaces a client accepts."""

from embedserve_client.space import Space


def is_comparable(required: str, space_id: str) -> bool:
    """Returns whether vectors of a space can be compared with those of the space a client requires.

    Args:
        required: as the client sent it; a malformed one can be compared with none.
        space_id: of a model.
    """
    try:
        return Space.parse(required).is_comparable_to(Space.parse(space_id))
    except ValueError:
        return False

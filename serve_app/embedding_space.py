"""Embedding spaces: which vectors may be compared with each other."""

_FLOAT_PRECISIONS = frozenset(("fp32", "bf16", "fp16"))


def is_comparable(a: str, b: str) -> bool:
    """Returns whether vectors of two spaces, `<family>-<precision>`, may share an index.

    They may if the family is the same, and the precision too or both precisions are floating-point.
    """
    family_a, _, precision_a = a.rpartition("-")
    family_b, _, precision_b = b.rpartition("-")
    if family_a != family_b:
        return False
    return precision_a == precision_b or (_is_float(precision_a) and _is_float(precision_b))


def _is_float(precision: str) -> bool:
    return precision.removesuffix("+float16") in _FLOAT_PRECISIONS

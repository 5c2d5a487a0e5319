"""Content negotiation (RFC 9110): `Accept` selects raw vectors or JSON."""

import re

JSON, RAW = "application/json", "application/octet-stream"

_WEIGHT = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def prefers_raw(accept: str) -> bool:
    """Returns whether a client prefers raw vectors to JSON.

    Ranges such as `*/*` never select raw vectors: most clients send them without knowing the
    format. At equal weights a client that lists it prefers it.
    """
    if RAW not in accept.lower():
        return False
    weights = parse_weights(accept)
    json_ranges = (JSON, "application/*", "*/*")
    json_weight = next((weights[name] for name in json_ranges if name in weights), 0.0)
    return 0 < weights.get(RAW, 0.0) >= json_weight


def parse_weights(header: str) -> dict[str, float]:
    """Returns the members of a header such as `Accept`, in lower case, and their weights.

    Parameters other than `q` are dropped. A malformed weight is 0. Of a repeated member the highest
    weight counts.
    """
    weights: dict[str, float] = {}
    for member in header.lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                value = value.strip()
                weight = float(value) if _WEIGHT.fullmatch(value) else 0.0
        if name:
            weights[name] = max(weight, weights.get(name, 0.0))
    return weights

"""The requests that a simulated router keeps back, as the policy sees them."""

from dataclasses import dataclass, replace

from serve_app.autoscale.fleet_load import FleetLoad


@dataclass(frozen=True, slots=True)
class HeldLoad:
    """What a router keeps back, and what arrives at it."""

    interactive_tokens: float = 0.0
    bulk_tokens: float = 0.0
    oldest_s: float = 0.0
    arrived_interactive_tokens_per_s: float = 0.0
    arrived_bulk_tokens_per_s: float = 0.0


def with_held(load: FleetLoad, held: HeldLoad) -> FleetLoad:
    """Adds what a router keeps back.

    While it keeps something back, replicas are offered what arrived earlier, so the arrivals are
    those at the router.
    """

    def arrivals(offered: float, arrived: float, kept_back: float) -> float:
        return arrived if kept_back > 0 else max(offered, arrived)

    return replace(
        load,
        queued_interactive_tokens=load.queued_interactive_tokens + held.interactive_tokens,
        queued_bulk_tokens=load.queued_bulk_tokens + held.bulk_tokens,
        oldest_interactive_s=max(load.oldest_interactive_s, held.oldest_s),
        offered_interactive_tokens_per_s=arrivals(
            load.offered_interactive_tokens_per_s,
            held.arrived_interactive_tokens_per_s,
            held.interactive_tokens,
        ),
        offered_bulk_tokens_per_s=arrivals(
            load.offered_bulk_tokens_per_s,
            held.arrived_bulk_tokens_per_s,
            held.bulk_tokens,
        ),
    )

"""Looks groups of texts up in the cache tiers and computes only what is missing.

group → L1 (memory) → in flight → L2 (shared store) → next tier → values
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from serve_app.cache.coalescer import GroupCoalescer, Result
from serve_app.cache.codec import Codec
from serve_app.cache.in_flight import Flight, wait_for
from serve_app.cache.key import cache_key, space_prefix
from serve_app.cache.memory import MemoryCache
from serve_app.meter import Meter, ModelMeter
from serve_app.metrics import CACHE_HITS, CACHE_MISSES, COALESCED
from serve_app.spans import Span, ending
from serve_app.tasks import Task
from serve_app.types import EncodedVectors, Lane, Outputs, TextGroup, Tier, Timings


class Store(Protocol):
    """The L2 store of a lookup. Its methods never raise and never wait for a slow server."""

    def get_many(self, keys: Sequence[bytes]) -> asyncio.Future[list[bytes | None]]:
        """Returns a value for each key; None if it is missing or the server doesn't answer."""
        ...

    def put(self, key: bytes, value: bytes, model: str) -> None:
        """Queues a value of a model to be written."""
        ...


class Lookup:
    """The cache of one model in one process: L1, texts in flight, and L2 if there is one.

    Both the Ingress and CacheLookup have one, the latter in front of the Embedder.

    Concurrent requests for the same text compute it once. A flight's error is raised to the request
    that started it; requests that joined retry on their own. Interactive texts don't join bulk
    flights, since they would wait for all of their texts.
    """

    def __init__(
        self,
        space_id: str,
        codecs: Mapping[Task, Codec],
        memory: MemoryCache,
        next_tier: GroupCoalescer,
        *,
        flights: dict[bytes, Flight] | None = None,
        store: Store | None = None,
        meter: ModelMeter | None = None,
    ) -> None:
        """A lookup.

        Args:
            space_id: the space of the model's outputs; part of every key.
            codecs: for each task, checks and decodes values. An invalid value of `store` is a miss
                and is overwritten.
            memory: the L1 cache, which models share.
            next_tier: computes what is in no tier: in another process, or with the engine.
            flights: the texts in flight, which lookups of one space share; None: its own.
            store: the L2 cache, which models share.
            meter: counts hits and misses.
        """
        self._space_id = space_id
        self._store_prefix = space_prefix(space_id)
        self._codecs = codecs
        self._memory = memory
        self._next_tier = next_tier
        self._store = store
        self._flights = {} if flights is None else flights
        self._meter = meter or Meter().for_model("")

    async def run(self, group: TextGroup) -> Outputs:
        """Returns the outputs of a group's texts, in their order.

        Raises:
            EmbedServeError: see `run_encoded`.
        """
        return self._codecs[group.task].decode(await self.run_encoded(group))

    def run_encoded(self, group: TextGroup) -> Coroutine[Any, Any, EncodedVectors]:
        """Returns the values of a group's texts, in their order.

        Raises:
            EmbedServeError: as raised by the next tier; nothing is cached then.
        """
        if not group.use_cache:
            return self._compute(group)
        return self._look_up(group) if group.span is None else self._trace(group, group.span)

    async def _trace(self, group: TextGroup, parent: Span) -> EncodedVectors:
        with ending(parent.child("cache", {"embedserve.texts": len(group.texts)})) as span:
            encoded = await self._look_up(replace(group, span=span))
            tiers = Counter(encoded.tiers)
            span.set({f"embedserve.{tier.name.lower()}": tiers[tier] for tier in Tier})
            return encoded

    async def _look_up(self, group: TextGroup) -> EncodedVectors:
        started = time.perf_counter()
        if not group.keys:
            space, prompt, task = self._space_id, group.prompt, group.task
            group.keys = tuple([cache_key(space, prompt, text, task) for text in group.texts])
        values = [self._memory.get(key) or b"" for key in group.keys]
        missing = [i for i, value in enumerate(values) if not value]
        tiers = bytearray([Tier.L1]) * len(values)
        timings = Timings(cache_s=time.perf_counter() - started)
        self._meter.add(CACHE_HITS, len(values) - len(missing), "l1")
        if missing:
            fetched = await self._fetch(group.subset(missing))
            for i, value, tier in zip(missing, fetched.values, fetched.tiers, strict=True):
                values[i], tiers[i] = value, tier
            cache_s = timings.cache_s + fetched.timings.cache_s
            timings = fetched.timings._replace(cache_s=cache_s)
        return EncodedVectors(values, bytes(tiers), timings)

    async def _fetch(self, group: TextGroup) -> EncodedVectors:
        """Returns values that aren't in L1: those in flight by joining, the others by a flight."""
        joined = [self._joinable(key, group.lane) for key in group.keys]
        unjoined = [i for i, flight in enumerate(joined) if flight is None]
        if len(unjoined) == len(joined):
            return await self._compute(group)
        self._meter.add(CACHE_MISSES, len(joined) - len(unjoined))
        self._meter.add(COALESCED, len(joined) - len(unjoined))
        flights = list(dict.fromkeys(flight for flight in joined if flight is not None))
        if group.span is not None:
            _link(group.span, flights)
        own = self._start(group.subset(unjoined)) if unjoined else None
        await wait_for(flights if own is None else [*flights, own])
        sources: list[Flight | None] = [
            own if flight is None else None if flight.error else flight for flight in joined
        ]
        if own is not None and own.error is not None:
            raise own.error
        failed = [i for i, flight in enumerate(sources) if flight is None]
        if failed:
            own = self._start(group.subset(failed))
            await wait_for([own])
            if own.error is not None:
                raise own.error
        # Without waiting, so that a request that is cancelled or fails takes nothing.
        last = own or flights[-1]
        rows = [(flight or last).take(key) for flight, key in zip(sources, group.keys, strict=True)]
        values, tiers = zip(*rows, strict=True)
        return EncodedVectors(values, bytes(tiers), last.timings)

    async def _compute(self, group: TextGroup) -> EncodedVectors:
        flight = self._start(group)
        await wait_for([flight])
        return flight.take_all()

    def _joinable(self, key: bytes, lane: Lane) -> Flight | None:
        flight = self._flights.get(key)
        if flight is None or (flight.group.lane == "bulk" and lane != "bulk"):
            return None
        return flight

    def _start(self, group: TextGroup) -> Flight:
        """Starts to read and compute texts that no other flight has."""
        flight = Flight(group, self._remove)
        self._flights.update(dict.fromkeys(group.keys, flight))
        if self._store is None or not group.use_cache:
            self._send(flight, range(len(group.texts)))
        else:
            started = time.perf_counter()
            if group.span is not None:
                flight.read_span = group.span.child(
                    "cache.l2", {"embedserve.texts": len(group.keys)}
                )
            read = self._store.get_many([self._store_prefix + key for key in group.keys])
            read.add_done_callback(partial(self._on_read, flight, started))
        return flight

    def _remove(self, flight: Flight) -> None:
        for key in flight.group.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _on_read(
        self, flight: Flight, started: float, read: asyncio.Future[list[bytes | None]]
    ) -> None:
        """Takes over the values of L2 and sends the other texts to the next tier."""
        if flight.read_span is not None:
            flight.read_span.end()
        if flight.done or read.cancelled():
            return
        missing, codec = [], self._codecs[flight.group.task]
        for i, (key, value) in enumerate(zip(flight.group.keys, read.result(), strict=True)):
            if value is None or not codec.is_valid(value):
                missing.append(i)
            else:
                flight.set_value(i, value, Tier.L2)
                self._memory.put(key, value)
        self._meter.add(CACHE_HITS, len(flight.group.keys) - len(missing), "l2")
        flight.timings = Timings(cache_s=time.perf_counter() - started)
        if missing:
            self._send(flight, missing)
        else:
            flight.finish()

    def _send(self, flight: Flight, missing: Sequence[int]) -> None:
        if flight.group.use_cache:
            self._meter.add(CACHE_MISSES, len(missing))
        submission = self._next_tier.submit(
            flight.group.subset(missing), partial(self._on_result, flight, missing)
        )
        flight.on_cancel = submission.cancel

    def _on_result(self, flight: Flight, missing: Sequence[int], result: Result) -> None:
        """Caches the values of the next tier and ends the flight."""
        if isinstance(result, Exception):
            flight.finish(result)
            return
        keys = flight.group.keys
        for i, value, tier in zip(missing, result.values, result.tiers, strict=True):
            flight.set_value(i, value, tier)
            if flight.group.use_cache:
                self._memory.put(keys[i], value)
                if self._store is not None and tier == Tier.COMPUTED:
                    self._store.put(self._store_prefix + keys[i], value, self._meter.model)
        cache_s = flight.timings.cache_s + result.timings.cache_s
        flight.timings = result.timings._replace(cache_s=cache_s)
        flight.finish()


def _link(span: Span, flights: Sequence[Flight]) -> None:
    """Links a span to the requests that started the flights which its texts have joined."""
    for flight in flights:
        if flight.group.span is not None:
            span.link(flight.group.span)

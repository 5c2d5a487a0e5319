"""Discrete events: texts arrive, batches end, replicas start, and a policy decides every second."""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from serve_app.autoscale.fleet_load import sum_reports
from serve_app.scheduler.rebalancing import SentCall, choose_moves
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.simulation.haproxy import HAProxy
from serve_app.simulation.held_load import HeldLoad, with_held
from serve_app.simulation.replica import Replica
from serve_app.simulation.result import SimulationResult, Timeline, Waiting
from serve_app.simulation.scalers import Observation, Scaler
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.trace import Trace

_TOKENS, _REQUESTS = attrgetter("tokens"), attrgetter("requests")
#: An interactive text waits for bulk texts of this time, as in `AssignedTokens`.
_BATCH_S = 0.1


def simulate(
    trace: Trace, service: SimulatedService, scaler: Scaler, *, seed: int = 0
) -> SimulationResult:
    """Runs the service on a trace until all texts are computed.

    Args:
        trace: the texts.
        service: the replicas.
        scaler: chooses their number.
        seed: of the router's choices.
    """
    return _Simulation(trace, service, scaler, seed).run()


@dataclass(frozen=True, slots=True)
class _Report:
    """What the replicas and the router report at one time."""

    loads: Mapping[Replica, ReplicaLoad]
    held: HeldLoad
    ongoing_requests: int


class _Simulation:
    """The state of one run."""

    def __init__(self, trace: Trace, service: SimulatedService, scaler: Scaler, seed: int) -> None:
        self._trace, self._service, self._scaler = trace, service, scaler
        self._random = random.Random(seed)
        self._arrival_s: list[float] = trace.arrival_s.tolist()
        self._tokens: list[int] = trace.tokens.tolist()
        self._is_bulk: list[bool] = trace.is_bulk.tolist()
        starts = trace.request_starts
        ends = np.append(starts[1:], trace.tokens.size)
        self._starts: list[int] = starts.tolist()
        self._ends: list[int] = ends.tolist()
        #: The last text of a request that is computed ends the request.
        self._request_of: list[int] = np.repeat(np.arange(starts.size), ends - starts).tolist()
        self._remaining: list[int] = (ends - starts).tolist()
        self._wait_s = [math.nan] * trace.tokens.size
        self._latency_s = [math.nan] * trace.tokens.size
        self._now_s = 0.0
        self._order = 0  # makes events of the same time comparable
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._haproxy = HAProxy() if service.router == "least_requests" else None
        self._running: list[Replica] = []
        self._starting: list[tuple[float, float]] = []  # time of readiness, of the order
        self._held = (deque[int](), deque[int]())  # requests of each lane, while none has room
        self._held_tokens = [0, 0]
        self._offered_tokens = [0, 0]
        self._max_tokens = service.max_assigned_s * service.capacity_tokens_per_s
        self._unfinished = len(self._starts)
        self._ongoing = 0
        self._target = service.bounds.clip(service.initial_replicas)
        self._startup_s = service.startup_times_s or (service.startup_s,)
        #: Reports on their way to the policy, with the time of their arrival.
        self._reports = deque[tuple[float, _Report]]()
        self._replica_s = 0.0
        self._leaving = 0
        self._refused = 0
        self._rows: list[tuple[int, int]] = []
        self._reasons: list[tuple[float, int, str]] = []

    def run(self) -> SimulationResult:
        """Runs to the end."""
        for _ in range(self._target):
            self._running.append(self._new_replica(0.0))
        self._reload()
        events, arrivals, starts = self._events, self._arrival_s, self._starts
        next_request, requests = 0, len(starts)
        arrival_s, report_s = arrivals[0], self._service.first_report_s
        while self._unfinished:
            event_s = events[0][0] if events else math.inf
            tick_s = min(report_s, self._reports[0][0]) if self._reports else report_s
            if arrival_s <= event_s and arrival_s <= tick_s:
                self._now_s = arrival_s
                self._arrive(next_request)
                next_request += 1
                arrival_s = arrivals[starts[next_request]] if next_request < requests else math.inf
            elif event_s <= tick_s:
                self._now_s, _, handle = heapq.heappop(events)
                handle()
            elif self._reports and self._reports[0][0] <= report_s:
                self._now_s, report = self._reports.popleft()
                self._scale(report)
            else:
                self._now_s = report_s
                self._report()
                report_s += 1.0
        while len(self._rows) < self._trace.duration_s:
            self._rows.append(self._rows[-1] if self._rows else (self._target, self._target))
        return self._result()

    def _new_replica(self, ordered_s: float) -> Replica:
        return Replica(self._service, self._arrival_s, self._tokens, ordered_s, lambda: self._now_s)

    def _push(self, time_s: float, handle: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (time_s, self._order, handle))

    def _arrive(self, request: int) -> None:
        start, end = self._starts[request], self._ends[request]
        is_bulk = self._is_bulk[start]
        tokens = self._tokens[start] if end - start == 1 else sum(self._tokens[start:end])
        self._ongoing += 1
        self._offered_tokens[is_bulk] += tokens
        is_routed = self._haproxy.has_replicas if self._haproxy else bool(self._running)
        if is_routed and not self._held[is_bulk]:
            replica = self._choose_replica(is_bulk)
            if self._has_room(replica, is_bulk):
                self._assign(request, tokens, replica)
                return
        limit = self._service.settings.max_queued_tokens * max(len(self._running), 1)
        if self._held_tokens[is_bulk] + tokens > limit:
            self._refuse(request)
            return
        self._held[is_bulk].append(request)
        self._held_tokens[is_bulk] += tokens

    def _has_room(self, replica: Replica, is_bulk: bool) -> bool:
        if self._service.router == "least_tokens":
            return replica.queued[is_bulk] < self._max_tokens
        if self._haproxy:
            return True
        return replica.requests < self._service.max_ongoing_requests

    def _assign(self, request: int, tokens: int, replica: Replica) -> None:
        start, end = self._starts[request], self._ends[request]
        is_bulk = self._is_bulk[start]
        if not replica.accepts(tokens, is_bulk):
            self._refuse(request)
            return
        replica.add(start, end, tokens, is_bulk)
        if self._haproxy:
            self._haproxy.sent(request, replica)
        if not replica.is_busy:
            self._start_batch(replica)

    def _refuse(self, request: int) -> None:
        self._refused += self._ends[request] - self._starts[request]
        self._unfinished -= 1
        self._ongoing -= 1

    def _assign_held(self, replica: Replica) -> None:
        """Assigns requests that were kept back to a replica that has room, interactive first."""
        for is_bulk, held in zip((False, True), self._held, strict=True):
            while held and self._has_room(replica, is_bulk):
                request = held.popleft()
                tokens = sum(self._tokens[self._starts[request] : self._ends[request]])
                self._held_tokens[is_bulk] -= tokens
                self._assign(request, tokens, replica)

    def _choose_replica(self, is_bulk: bool) -> Replica:
        running = self._running
        if self._haproxy:
            return self._haproxy.select()
        if len(running) == 1:
            return running[0]
        if self._service.router == "least_tokens":
            return min(running, key=_TOKENS if is_bulk else self._tokens_ahead)
        count = len(running)
        first = int(self._random.random() * count)
        second = int(self._random.random() * (count - 1))
        return min(running[first], running[second + (second >= first)], key=_REQUESTS)

    def _tokens_ahead(self, replica: Replica) -> float:
        """Returns the tokens that an interactive text waits for."""
        interactive, bulk = replica.queued
        return interactive + min(bulk, _BATCH_S * self._service.capacity_tokens_per_s)

    def _start_batch(self, replica: Replica) -> None:
        now_s = self._now_s
        batch, seconds = replica.start_batch(now_s)
        if not batch:
            return
        wait_s, latency_s, arrival_s = self._wait_s, self._latency_s, self._arrival_s
        for text in batch:
            wait_s[text] = now_s - arrival_s[text]
            latency_s[text] = wait_s[text] + seconds
        self._push(now_s + seconds, partial(self._end_batch, replica, now_s))

    def _end_batch(self, replica: Replica, started_s: float) -> None:
        remaining, request_of = self._remaining, self._request_of
        for text in replica.end_batch(self._now_s, started_s):
            request = request_of[text]
            remaining[request] -= 1
            if not remaining[request]:
                replica.requests -= 1
                if self._haproxy:
                    self._haproxy.ended(request)
                self._unfinished -= 1
                self._ongoing -= 1
        if not replica.is_leaving and (self._held[0] or self._held[1]):
            self._assign_held(replica)
        if not replica.is_busy:
            self._start_batch(replica)
        if replica.is_leaving and not replica.is_busy:
            self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        self._replica_s += self._now_s - replica.ordered_s
        self._leaving -= 1

    def _become_ready(self, ordered_s: float) -> None:
        ready = (self._now_s, ordered_s)
        if ready not in self._starting:
            return  # it was stopped before
        self._starting.remove(ready)
        self._running.append(self._new_replica(ordered_s))
        if self._haproxy:
            self._push(self._now_s + self._service.reload_s, self._reload)
            return
        self._assign_held(self._running[-1])
        if self._service.router == "least_tokens":
            self._rebalance()

    def _reload(self) -> None:
        """Tells HAProxy of the replicas that run."""
        if self._haproxy:
            self._haproxy.reload(self._running)
            if self._running:
                self._assign_held(self._running[-1])

    def _rebalance(self) -> None:
        """Moves waiting requests to a new replica, as `TokenRouter` does."""
        calls = [
            SentCall(request, replica, "bulk" if is_bulk else "interactive", tokens)
            for replica in self._running
            for is_bulk in (False, True)
            for request, tokens in self._waiting(replica, is_bulk)
        ]
        calls.sort(key=lambda call: call.call)
        speeds = dict.fromkeys(self._running, self._service.capacity_tokens_per_s)
        for call, target in choose_moves(calls, speeds):
            start, end = self._starts[call.call], self._ends[call.call]
            is_bulk = call.lane == "bulk"
            call.replica.remove(start, end, call.tokens, is_bulk)
            target.add(start, end, call.tokens, is_bulk, is_moved=True)
        for replica in self._running:
            if not replica.is_busy:
                self._start_batch(replica)

    def _waiting(self, replica: Replica, is_bulk: bool) -> list[tuple[int, int]]:
        """Returns the requests all of whose texts wait, with their tokens."""
        texts = Counter(self._request_of[text] for text in replica.waiting(is_bulk))
        sizes = ((r, self._starts[r], self._ends[r], count) for r, count in texts.items())
        return [
            (r, sum(self._tokens[start:end]))
            for r, start, end, count in sizes
            if count == end - start
        ]

    def _report(self) -> None:
        now_s = self._now_s
        loads = {replica: replica.report(now_s) for replica in self._running}
        self._rows.append((len(self._running), self._target))
        report = _Report(loads, self._held_load(), self._ongoing)
        self._reports.append((now_s + self._service.report_delay_s, report))

    def _scale(self, report: _Report) -> None:
        now_s, running = self._now_s, self._running
        loads = {str(i): report.loads[r] for i, r in enumerate(running) if r in report.loads}
        load = sum_reports(loads, len(running), new=len(running) - len(loads))
        seen = Observation(
            now_s,
            len(running),
            self._target,
            self._service.bounds,
            with_held(load, report.held),
            report.ongoing_requests,
        )
        decision = self._scaler.decide(seen)
        target = self._service.bounds.clip(decision.replicas)
        if target != self._target:
            self._reasons.append((now_s, target, decision.reason))
        self._target = target
        while len(self._running) + len(self._starting) < target:
            ready_s = now_s + self._startup_s[min(len(self._starting), len(self._startup_s) - 1)]
            self._starting.append((ready_s, now_s))
            self._push(ready_s, partial(self._become_ready, now_s))
        while len(self._running) + len(self._starting) > target:
            self._stop_one()

    def _held_load(self) -> HeldLoad:
        """Returns what the router keeps back, and what arrived at it since the previous call."""
        (interactive, bulk), self._offered_tokens = self._offered_tokens, [0, 0]
        oldest_s = 0.0
        if self._held[0]:
            oldest_s = self._now_s - self._arrival_s[self._starts[self._held[0][0]]]
        return HeldLoad(self._held_tokens[0], self._held_tokens[1], oldest_s, interactive, bulk)

    def _stop_one(self) -> None:
        """Stops a replica: the newest that is starting, or else the newest that runs."""
        if self._starting:
            _, ordered_s = self._starting.pop()
            self._replica_s += self._now_s - ordered_s
            return
        replica = self._running.pop()
        self._reload()
        replica.is_leaving = True
        self._leaving += 1
        if not replica.is_busy:
            self._leave(replica)

    def _result(self) -> SimulationResult:
        end_s = max(self._now_s, self._trace.duration_s)
        replica_s = self._replica_s
        replica_s += sum(end_s - replica.ordered_s for replica in self._running)
        replica_s += sum(end_s - ordered_s for _, ordered_s in self._starting)
        waits = np.array(self._wait_s)
        interactive = ~self._trace.is_bulk & ~np.isnan(waits)
        bulk = self._trace.is_bulk & ~np.isnan(waits)
        seconds = int(self._trace.duration_s)
        rows = np.array(self._rows[:seconds], dtype=np.int64)
        return SimulationResult(
            waiting={
                "interactive": Waiting.of(waits[interactive]),
                "bulk": Waiting.of(waits[bulk]),
            },
            replica_hours=replica_s / 3600,
            refused_texts=self._refused,
            timeline=Timeline(
                offered_tokens_per_s=self._trace.tokens_per_second("interactive")
                + self._trace.tokens_per_second("bulk"),
                running=rows[:, 0],
                target=rows[:, 1],
                p99_s=_p99_by_second(
                    self._trace.arrival_s[interactive], waits[interactive], seconds
                ),
            ),
            reasons=self._reasons,
            waits_s=waits,
            latencies_s=np.array(self._latency_s),
        )


def _p99_by_second(
    arrival_s: npt.NDArray[np.float64], waits_s: npt.NDArray[np.float64], seconds: int
) -> npt.NDArray[np.float64]:
    """Returns the p99 of the texts of each second; 0 without texts."""
    edges = np.searchsorted(arrival_s, np.arange(seconds + 1))
    result = np.zeros(seconds)
    for i in range(seconds):
        part = waits_s[edges[i] : edges[i + 1]]
        if part.size:
            result[i] = np.quantile(part, 0.99)
    return result

"""The discrete-event machine: one rank, G CTAs that share HBM, each with a weight ring, a consumer and a
store role.

A CTA streams the weight stages of all ops in program order. A stage is requested when the ring has a free
slot (or, with L2 prefetch, when the look-ahead window reaches it and its address is known), lands when
the shared HBM server has moved it, and is consumed when the op's inputs, its activations and the consumer
are ready. An op is done when every CTA has finished its tasks; what waits for it starts a hand-off later.
The other ranks are assumed to run alike.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, field

from tilecc.ir.tile import HandOffKind
from tilecc.sim.costs import Costs
from tilecc.sim.lower import Scenario, SimOp

LOOK_AHEAD_OPS = 16
"""Ops that the L2 prefetch looks past the one that the ring is filled from."""


@dataclass(frozen=True)
class Machine:
    """The part of a schedule that the simulator needs: ring slots, bytes that may be prefetched to L2 per
    SM (0: no L2 prefetch), and whether the ring may hold stages of the next op before this one is
    consumed."""

    ring_slots: int
    l2_prefetch: int = 0
    across_ops: bool = True


@dataclass(frozen=True)
class Span:
    """Something a role of a CTA did, seconds. `what` is "load", "compute" or "wait"."""

    cta: int
    role: str
    op: int
    what: str
    start: float
    end: float


@dataclass
class Result:
    """Times in seconds from the start of the step. Always modelled."""

    step: float = 0.0
    ready: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    hbm_bytes: dict[str, float] = field(default_factory=dict)
    hbm_busy: float = 0.0
    idle: dict[str, float] = field(default_factory=dict)
    starved: dict[str, float] = field(default_factory=dict)
    """Time with less than 64 KiB requested and not landed on a sampled SM, by what it waited for."""
    spans: list[Span] = field(default_factory=list)
    traffic: list[tuple[float, float, float]] = field(default_factory=list)
    """(start, end, bytes) of HBM transfers, merged."""


def simulate(
    ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario, sample: tuple[int, ...] = ()
) -> Result:
    """Run one step. `sample` names CTAs whose spans are recorded."""
    return _Run(ops, machine, costs, scenario, sample).run()


IN_FLIGHT = 64 * 1024


class _Run:
    def __init__(
        self, ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario, sample: tuple[int, ...]
    ) -> None:
        self.ops, self.machine, self.costs, self.scenario = ops, machine, costs, scenario
        self.grid = scenario.grid
        self.result = Result()
        self.sample = frozenset(sample)
        count = len(ops)
        self.stages = [self._stages(op) for op in ops]
        self.busy_ctas = [sum(1 for n in row if n) for row in self.stages]
        self.ready: list[float | None] = [None] * count
        self.done: list[float | None] = [None] * count
        self.users: list[list[int]] = [[] for _ in ops]
        self.missing = [0] * count
        for i, op in enumerate(ops):
            for wait in op.waits:
                if not wait.previous_step:
                    self.users[wait.op].append(i)
                    self.missing[i] += 1
        self.finished = [0] * count
        self.latest = [0.0] * count
        self.waiting: dict[int, list[int]] = defaultdict(list)
        self.known: set[int] = set()
        self.hbm_free = 0.0
        self.events: list[tuple[float, int, int, int]] = []
        self.number = 0
        g = self.grid
        self.free = [machine.ring_slots] * g
        self.issue_op, self.issue_k = [0] * g, [0] * g
        self.use_op, self.use_k = [0] * g, [0] * g
        self.landed: list[deque[float]] = [deque() for _ in range(g)]
        self.time = [0.0] * g
        self.why = ["start"] * g
        self.ahead: list[dict[int, deque[float]]] = [defaultdict(deque) for _ in range(g)]
        self.ahead_bytes = [0.0] * g
        self.flight: list[tuple[float, int]] = []

    def _stages(self, op: SimOp) -> list[int]:
        """Stages of each CTA: tasks dealt in turn from the rotation."""
        tasks, g = round(op.tasks), self.grid
        if not op.stages:
            return [0] * g
        each, rest = divmod(tasks, g)
        return [round((each + ((c - op.rotation) % g < rest)) * op.stages) for c in range(g)]

    # ---- events --------------------------------------------------------------------------------------------

    def at(self, time: float, kind: int, which: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (time, self.number, kind, which))

    SLOT, KNOWN, KV = 0, 1, 2

    def run(self) -> Result:
        for i in range(len(self.ops)):
            if not self.missing[i]:
                self.set_ready(i, 0.0)
        for c in range(self.grid):
            self.at(0.0, self.SLOT, -c - 1)
        while self.events:
            time, _, kind, which = heapq.heappop(self.events)
            if kind == self.SLOT:
                c = which
                if c < 0:
                    c = -c - 1
                else:
                    self.free[c] += 1
                self.issue(c, time)
            elif kind == self.KNOWN:
                self.known.add(which)
                for c in range(self.grid):
                    self.why[c] = "the expert list"
                    self.issue(c, time)
            else:
                self.hbm(time, self.ops[which].kv_bytes, "kv", "attention inputs")
        missing = [op.name for op, done in zip(self.ops, self.done, strict=True) if done is None]
        assert not missing, f"the step never finishes: {missing[:3]}"
        r = self.result
        r.ready = [t or 0.0 for t in self.ready]
        r.done = [t or 0.0 for t in self.done]
        r.step = max(r.done)
        self.measure_flight()
        return r

    # ---- HBM -----------------------------------------------------------------------------------------------

    def hbm(self, time: float, nbytes: float, kind: str, why: str) -> float:
        """Queue a request; returns when its last byte has arrived."""
        if time > self.hbm_free:
            if self.hbm_free or why != "start":
                self.result.idle[why] = self.result.idle.get(why, 0.0) + time - self.hbm_free
            start = time
        else:
            start = self.hbm_free
        seconds = nbytes / self.costs.hbm_rate
        self.hbm_free = start + seconds
        self.result.hbm_busy += seconds
        self.result.hbm_bytes[kind] = self.result.hbm_bytes.get(kind, 0.0) + nbytes
        traffic = self.result.traffic
        if traffic and start <= traffic[-1][1] + 1e-9:
            traffic[-1] = (traffic[-1][0], self.hbm_free, traffic[-1][2] + nbytes)
        else:
            traffic.append((start, self.hbm_free, nbytes))
        return self.hbm_free + self.costs.hbm_latency

    def addressable(self, op: SimOp) -> bool:
        return op.route < 0 or op.route in self.known

    def issue(self, c: int, time: float) -> None:
        """Request one stage of a CTA, for the ring or else to look ahead, and come back: CTAs that request at
        one time take turns."""
        i = self.next_stage(c, time) if self.free[c] > 0 else -1
        if i >= 0:
            self.request(c, i, time)
        elif not self.look_ahead(c, time):
            self.consume(c)
            return
        self.at(time, self.SLOT, -c - 1)
        self.consume(c)

    def next_stage(self, c: int, time: float) -> int:
        """The op of the next stage of the ring, -1 while its address is unknown or its op may not start."""
        while self.issue_op[c] < len(self.ops) and self.issue_k[c] >= self.stages[self.issue_op[c]][c]:
            self.issue_op[c], self.issue_k[c] = self.issue_op[c] + 1, 0
        i = self.issue_op[c]
        if i == len(self.ops) or not self.addressable(self.ops[i]):
            return -1
        inputs = self.ready[i]
        if self.machine.across_ops or (inputs is not None and inputs <= time):
            return i
        if inputs is not None:
            self.at(inputs, self.SLOT, -c - 1)
        elif c not in self.waiting[i]:
            self.waiting[i].append(c)
        return -1

    def request(self, c: int, i: int, time: float) -> None:
        op = self.ops[i]
        ahead = self.ahead[c].get(i)
        if ahead:
            land = max(ahead.popleft(), time) + self.costs.l2_latency
            land += op.stage_bytes / self.costs.l2_rate_per_sm
            self.ahead_bytes[c] -= op.stage_bytes
        else:
            land = self.hbm(time, op.stage_bytes, op.label, self.why[c])
        if c in self.sample:
            self.flight.append((time, int(op.stage_bytes)))
            self.flight.append((land, -int(op.stage_bytes)))
            self.result.spans.append(Span(c, "loader", i, "load", time, land))
        self.landed[c].append(land)
        self.free[c] -= 1
        self.issue_k[c] += 1

    def look_ahead(self, c: int, time: float) -> bool:
        """Request a stage that the ring has no slot for yet into L2; skips unknown addresses."""
        first = self.issue_op[c]
        for i in range(first, min(first + LOOK_AHEAD_OPS, len(self.ops))):
            op = self.ops[i]
            if not op.stages or not self.addressable(op):
                continue
            if self.ahead_bytes[c] + op.stage_bytes > self.machine.l2_prefetch:
                return False
            have = self.ahead[c][i]
            if self.stages[i][c] - len(have) - (self.issue_k[c] if i == first else 0) > 0:
                have.append(self.hbm(time, op.stage_bytes, op.label, self.why[c]))
                self.ahead_bytes[c] += op.stage_bytes
                return True
        return False

    # ---- consumers -----------------------------------------------------------------------------------------

    def consume(self, c: int) -> None:
        costs, landed = self.costs, self.landed[c]
        while landed:
            i = self.use_op[c]
            count = self.stages[i][c]
            if self.use_k[c] >= count:
                self.use_op[c], self.use_k[c] = i + 1, 0
                continue
            inputs = self.ready[i]
            if inputs is None:
                if c not in self.waiting[i]:
                    self.waiting[i].append(c)
                return
            op = self.ops[i]
            acts = inputs + costs.l2_latency + (self.use_k[c] + 1) * op.act_bytes / costs.l2_rate_per_sm
            land = landed.popleft()
            start = max(land, self.time[c], acts)
            if start == land:
                self.why[c] = "weights in flight"
            elif start == acts:
                self.why[c] = f"inputs of {op.label}" if not self.use_k[c] else "activations"
            else:
                self.why[c] = "consumers"
            end = start + op.lanes / (costs.lanes * costs.clock)
            if c in self.sample:
                if start > self.time[c]:
                    self.result.spans.append(Span(c, "consumer", i, "wait", self.time[c], start))
                self.result.spans.append(Span(c, "consumer", i, "compute", start, end))
            self.time[c] = end
            self.use_k[c] += 1
            self.at(end + costs.mbarrier, self.SLOT, c)
            if self.use_k[c] == count:
                self.finish(i, end + costs.epilogue)

    def finish(self, i: int, time: float) -> None:
        self.finished[i] += 1
        self.latest[i] = max(self.latest[i], time)
        if self.finished[i] == self.busy_ctas[i]:
            self.set_done(i, self.latest[i])

    # ---- hand-offs -----------------------------------------------------------------------------------------

    def set_done(self, i: int, time: float) -> None:
        self.done[i] = time
        for user in self.users[i]:
            self.missing[user] -= 1
            if not self.missing[user]:
                self.set_ready(user, self.inputs_of(user))

    def inputs_of(self, i: int) -> float:
        cost = {
            HandOffKind.MBARRIER: self.costs.mbarrier,
            HandOffKind.COUNTER: self.costs.counter,
            HandOffKind.PEER_FLAG: self.costs.peer,
        }
        times = [0.0]
        for wait in self.ops[i].waits:
            done = self.done[wait.op]
            if not wait.previous_step and done is not None:
                times.append(done + cost[wait.kind])
        return max(times)

    def set_ready(self, i: int, time: float) -> None:
        self.ready[i] = time
        op = self.ops[i]
        if not self.busy_ctas[i]:
            if op.kv_bytes:
                self.at(time, self.KV, i)
            if op.kind == "route":
                self.at(time + self.seconds(op), self.KNOWN, i)
            self.set_done(i, time + self.seconds(op))
            return
        for c in self.waiting.pop(i, []):
            if not self.machine.across_ops:
                self.at(time, self.SLOT, -c - 1)
            self.consume(c)

    def seconds(self, op: SimOp) -> float:
        """Duration of an op without weight stages, of its busiest CTA."""
        costs = self.costs
        rounds = -(-round(op.tasks) // self.grid) if op.tasks else 1
        if op.kind == "attention":
            # Blocks of one task are dealt over four consumer warps; the first has to arrive.
            stream = op.kv_bytes / costs.hbm_rate
            deep = rounds * -(-op.act_bytes // 4) * costs.attention_block
            return costs.hbm_latency + max(stream, deep) + costs.epilogue
        if op.kind == "route":
            return costs.l2_latency + costs.route
        if op.kind == "commit":
            return costs.l2_latency + costs.commit
        return costs.l2_latency + rounds * costs.reduce_unit

    # ---- figures -------------------------------------------------------------------------------------------

    def measure_flight(self) -> None:
        """Time with less than 64 KiB in flight per sampled SM, from its requests and landings."""
        level, last, starved = 0, 0.0, 0.0
        for time, change in sorted(self.flight):
            if level < IN_FLIGHT * len(self.sample):
                starved += time - last
            level, last = level + change, time
        if self.sample:
            self.result.starved["all"] = starved

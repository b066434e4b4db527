"""The discrete-event machine: one rank, G CTAs that share HBM, each with a weight ring, an activation ring, a
loader, consumers and a store role.

A CTA streams the weight stages of all ops in program order. A stage is requested when the loader is free and
the ring has a slot, lands when the shared HBM server has moved it, and is consumed when the op's inputs, its
activations and the consumers are ready. When an op has filled the ring, its loader asks for the weights of
the ops in `SimOp.prefetch`, which then come from L2. An op is done when every CTA has finished its tasks;
what waits for it starts a hand-off later. The other ranks are assumed to run alike.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, field

from tilecc.ir.tile import TileGraph
from tilecc.sim.costs import Costs
from tilecc.sim.loops import stage_seconds
from tilecc.sim.lower import Path, Scenario, SimOp

IN_FLIGHT = 64 * 1024
"""Bytes requested and not landed that keep the memory system of Hopper busy (design, section 3)."""


@dataclass(frozen=True)
class Machine:
    """The part of a schedule that the simulator needs: slots of the rings, warps of the roles, whether the
    ring may hold stages of the next op before this one is consumed, and whether the L2 prefetches of the ops
    take place."""

    ring_slots: int
    act_slots: int = 8
    act_warps: int = 2
    consumers: int = 4
    across_ops: bool = True
    l2_prefetch: bool = True


def machine_of(graph: TileGraph) -> Machine:
    """The machine that a graph after `rings` describes."""
    slots = {ring.name: ring.slots for ring in graph.rings}
    warps = {role.name: role.warps for role in graph.roles}
    return Machine(slots["weights"], slots["activations"], warps["activations"], warps["consumer"])


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
class Parts:
    """Where the time of an op went on the CTA that finished it last, seconds from its inputs being ready:
    earlier ops of the CTA, waiting for activations, waiting for weights, multiplying, epilogue."""

    earlier: float = 0.0
    activations: float = 0.0
    weights: float = 0.0
    compute: float = 0.0
    epilogue: float = 0.0

    def total(self) -> float:
        return self.earlier + self.activations + self.weights + self.compute + self.epilogue


@dataclass
class Result:
    """Times in seconds from the start of the step. Always modelled."""

    step: float = 0.0
    ready: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    parts: list[Parts] = field(default_factory=list)
    hbm_bytes: dict[str, float] = field(default_factory=dict)
    hbm_busy: float = 0.0
    idle: dict[str, float] = field(default_factory=dict)
    starved: dict[str, float] = field(default_factory=dict)
    """Time of an average sampled SM with less than 64 KiB requested and not landed: "expert list" while the
    list is not known and all that may be requested without it has been, else "other"."""
    spans: list[Span] = field(default_factory=list)
    traffic: list[tuple[float, float, float]] = field(default_factory=list)
    """(start, end, bytes) of HBM transfers, merged."""


def simulate(
    ops: list[SimOp],
    machine: Machine,
    costs: Costs,
    scenario: Scenario,
    sample: tuple[int, ...] = (),
    spans: bool = False,
) -> Result:
    """Run one step. `sample` names the CTAs whose bytes in flight are followed, with `spans` all they do."""
    return _Run(ops, machine, costs, scenario, sample, spans).run()


Cause = tuple[str, float, str]
"""What a CTA that requests again had waited for: the first until a time, the second after it."""


class _Run:
    SLOT, KNOWN, KV, LOADER = 0, 1, 2, 3

    def __init__(
        self,
        ops: list[SimOp],
        machine: Machine,
        costs: Costs,
        scenario: Scenario,
        sample: tuple[int, ...],
        spans: bool,
    ) -> None:
        self.ops, self.machine, self.costs, self.scenario = ops, machine, costs, scenario
        self.grid = g = scenario.grid
        self.result = Result(parts=[Parts() for _ in ops])
        self.sample, self.spans = frozenset(sample), spans
        count = len(ops)
        self.stages = [self.deal(op) for op in ops]
        self.busy_ctas = [sum(1 for n in row if n) for row in self.stages]
        self.seconds = [self.stage_seconds(op) for op in ops]
        self.fetch = [self.fetch_seconds(op) for op in ops]
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
        # Loaders
        self.free = [machine.ring_slots] * g
        self.issue_op, self.issue_k = [0] * g, [0] * g
        self.loader = [0.0] * g
        self.called = [False] * g
        self.pending: list[deque[tuple[int, int]]] = [deque() for _ in range(g)]
        self.ahead: list[dict[int, deque[float]]] = [defaultdict(deque) for _ in range(g)]
        self.l2_free = 0.0
        self.port = [0.0] * g
        # Consumers
        self.use_op, self.use_k = [0] * g, [0] * g
        self.landed: list[deque[float]] = [deque() for _ in range(g)]
        self.time = [0.0] * g
        self.parts = [Parts() for _ in range(g)]
        self.why: list[Cause] = [("start", 0.0, "start")] * g
        self.act_end = [0.0] * g
        self.act_slots: list[deque[float]] = [deque([0.0] * machine.act_slots) for _ in range(g)]
        # Bytes in flight of the sampled CTAs: (time, change); whether only the expert list holds them back.
        self.flight: dict[int, list[tuple[float, float]]] = {c: [] for c in self.sample}
        self.held: dict[int, list[tuple[float, bool]]] = {c: [] for c in self.sample}

    def deal(self, op: SimOp) -> list[int]:
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

    def run(self) -> Result:
        for i in range(len(self.ops)):
            if not self.missing[i]:
                self.set_ready(i, 0.0)
        for c in range(self.grid):
            self.call(c, 0.0)
        while self.events:
            time, _, kind, which = heapq.heappop(self.events)
            if kind == self.SLOT:
                self.free[which] += 1
                self.call(which, time)
            elif kind == self.LOADER:
                self.called[which] = False
                self.issue(which, time)
            elif kind == self.KNOWN:
                self.known.add(which)
                for c in range(self.grid):
                    self.why[c] = ("the expert list", time, "the expert list")
                    self.call(c, time)
            else:
                self.hbm(time, self.ops[which].kv_bytes, "kv", ("attention inputs", time, "attention inputs"))
        missing = [op.name for op, done in zip(self.ops, self.done, strict=True) if done is None]
        assert not missing, f"the step never finishes: {missing[:3]}"
        r = self.result
        r.ready = [t or 0.0 for t in self.ready]
        r.done = [t or 0.0 for t in self.done]
        r.step = max(r.done)
        self.measure_flight()
        return r

    # ---- HBM -----------------------------------------------------------------------------------------------

    def hbm(self, time: float, nbytes: float, kind: str, why: Cause) -> float:
        """Queue a request; returns when its last byte has arrived."""
        start = max(time, self.hbm_free)
        if time > self.hbm_free and (self.hbm_free or why[0] != "start"):
            first = min(max(why[1] - self.hbm_free, 0.0), time - self.hbm_free)
            for cause, seconds in ((why[0], first), (why[2], time - self.hbm_free - first)):
                if seconds:
                    self.result.idle[cause] = self.result.idle.get(cause, 0.0) + seconds
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

    # ---- loaders -------------------------------------------------------------------------------------------

    def call(self, c: int, time: float) -> None:
        """Let a loader look for work as soon as it is free."""
        if not self.called[c]:
            self.called[c] = True
            self.at(max(time, self.loader[c]), self.LOADER, c)

    def issue(self, c: int, time: float) -> None:
        """Request one stage of a CTA, for L2 or for the ring, and come back: CTAs that request at one time
        take turns."""
        i = self.next_stage(c, time)
        if self.pending[c]:
            self.request_ahead(c, time)
        elif i >= 0 and self.free[c] > 0:
            self.request(c, i, time)
        else:
            if c in self.sample:
                self.held[c].append((time, self.waits_for_list(c)))
            return
        if c in self.sample:
            self.held[c].append((time, False))
        self.call(c, time)

    def waits_for_list(self, c: int) -> bool:
        """Whether the next expert op of a CTA has no addresses yet."""
        for i in range(self.issue_op[c], len(self.ops)):
            if self.ops[i].route >= 0:
                return self.ops[i].route not in self.known
        return False

    def next_stage(self, c: int, time: float) -> int:
        """The op of the next stage of the ring, -1 while its address is unknown or its op may not start."""
        while self.issue_op[c] < len(self.ops) and self.issue_k[c] >= self.stages[self.issue_op[c]][c]:
            i = self.issue_op[c]
            if not self.stages[i][c]:
                self.plan_ahead(c, i)
            self.issue_op[c], self.issue_k[c] = i + 1, 0
        i = self.issue_op[c]
        if i == len(self.ops) or not (self.ops[i].route < 0 or self.ops[i].route in self.known):
            return -1
        inputs = self.ready[i]
        if self.machine.across_ops or (inputs is not None and inputs <= time):
            return i
        if inputs is not None:
            self.call(c, inputs)
        elif c not in self.waiting[i]:
            self.waiting[i].append(c)
        return -1

    def plan_ahead(self, c: int, i: int) -> None:
        """What the loader asks for once op i has filled the ring, or has nothing to load."""
        if self.machine.l2_prefetch:
            for j, stages in self.ops[i].prefetch:
                # What is in L2 already costs no second trip.
                done = len(self.ahead[c].get(j, ())) + (self.issue_k[c] if j == i else 0)
                left = min(stages, self.stages[j][c] - done)
                if left > 0:
                    self.pending[c].append((j, left))

    def request_ahead(self, c: int, time: float) -> None:
        j, left = self.pending[c].popleft()
        op = self.ops[j]
        land = self.hbm(time, op.stage_bytes, op.label, self.why[c])
        self.ahead[c][j].append(land)
        self.loader[c] = time + op.copies * self.costs.copy
        self.follow(c, j, time, land)
        if left > 1:
            self.pending[c].appendleft((j, left - 1))

    def request(self, c: int, i: int, time: float) -> None:
        op = self.ops[i]
        self.loader[c] = time + self.costs.mbarrier_passed + op.copies * self.costs.copy
        ahead = self.ahead[c].get(i)
        if ahead:
            self.l2_free = max(self.l2_free, time) + op.stage_bytes / self.costs.l2_stream
            land = max(ahead.popleft(), self.l2_free) + self.costs.l2_latency
        else:
            land = self.hbm(time, op.stage_bytes, op.label, self.why[c])
            self.follow(c, i, time, land)
        # All that an SM takes in passes its port.
        land = max(land, self.loader[c] + self.costs.l2_latency, self.port[c])
        self.port[c] = max(self.port[c], time) + op.stage_bytes / self.costs.l2_rate_per_sm
        land = max(land, self.port[c])
        self.landed[c].append(land)
        self.free[c] -= 1
        self.issue_k[c] += 1
        if self.issue_k[c] == min(self.machine.ring_slots, self.stages[i][c]):
            self.plan_ahead(c, i)
        self.consume(c)

    def follow(self, c: int, i: int, start: float, land: float) -> None:
        if c in self.sample:
            self.flight[c] += [(start, self.ops[i].stage_bytes), (land, -self.ops[i].stage_bytes)]
            if self.spans:
                self.result.spans.append(Span(c, "loader", i, "load", start, land))

    # ---- consumers -----------------------------------------------------------------------------------------

    def stage_seconds(self, op: SimOp) -> float:
        if not op.stages:
            return 0.0
        warps = op.warps or self.machine.consumers
        return stage_seconds(op.format, op.weights, warps, self.costs, self.scenario.loops)

    def fetch_seconds(self, op: SimOp) -> tuple[float, float]:
        """Activations of an op: seconds of a chunk's latency, of a chunk's bytes."""
        if op.path is Path.NONE:
            return 0.0, 0.0
        return self.costs.l2_latency, self.costs.copy + op.act_bytes / self.costs.l2_rate_per_sm

    def fetch_chunk(self, c: int, i: int, inputs: float) -> float:
        """When the next activation chunk of a CTA is in the ring."""
        latency, each = self.fetch[i]
        resident = self.ops[i].path is Path.RESIDENT
        if resident and self.use_k[c] >= self.ops[i].stages:
            return inputs
        begin = inputs if resident else max(inputs, self.act_slots[c].popleft())
        land: float = max(begin + latency, self.act_end[c]) + each
        self.act_end[c] = land
        return land

    def consume(self, c: int) -> None:
        """Multiply the stages whose inputs are known; times in the future are worked out ahead."""
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
            op, parts = self.ops[i], self.parts[c]
            if self.use_k[c] == 0:
                self.parts[c] = parts = Parts(earlier=max(0.0, self.time[c] - inputs))
            acts = self.fetch_chunk(c, i, inputs)
            land = landed.popleft()
            begin = max(self.time[c], inputs)
            start = max(land, begin, acts)
            if start == land and land > begin:
                self.why[c] = (f"weights of {op.label}", start, "consumers")
                parts.weights += start - begin
            elif start > begin:
                self.why[c] = (f"inputs of {op.label}", inputs, f"activations of {op.label}")
                parts.activations += start - begin
            else:
                self.why[c] = ("consumers", start, "consumers")
            end = start + self.seconds[i]
            parts.compute += self.seconds[i]
            if c in self.sample and self.spans:
                if start > self.time[c]:
                    self.result.spans.append(Span(c, "consumer", i, "wait", self.time[c], start))
                self.result.spans.append(Span(c, "consumer", i, "compute", start, end))
            self.time[c] = end
            self.use_k[c] += 1
            if op.path is not Path.RESIDENT:
                self.act_slots[c].append(end + costs.mbarrier)
            self.at(end + costs.mbarrier, self.SLOT, c)
            if self.use_k[c] == count:
                parts.epilogue = costs.epilogue
                self.finish(c, i, end + costs.epilogue)

    def finish(self, c: int, i: int, time: float) -> None:
        self.finished[i] += 1
        if time > self.latest[i]:
            self.latest[i], self.result.parts[i] = time, self.parts[c]
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
        cost = self.costs.hand_off()
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
            seconds = self.alone(op)
            if op.kind == "route":
                self.at(time + seconds, self.KNOWN, i)
            self.result.parts[i] = Parts(compute=seconds)
            self.set_done(i, time + seconds)
            return
        for c in self.waiting.pop(i, []):
            if not self.machine.across_ops:
                self.call(c, time)
            self.consume(c)

    def alone(self, op: SimOp) -> float:
        """Duration of an op without weight stages, of its busiest CTA."""
        costs = self.costs
        rounds = -(-round(op.tasks) // self.grid) if op.tasks else 1
        if op.kind == "attention":
            # Blocks come through the activation ring.
            ahead = self.machine.act_slots * op.slot_blocks * op.block_bytes
            load = op.block_bytes / min(costs.l2_rate_per_sm, ahead / costs.l2_latency)
            deep = rounds * op.warp_blocks * max(costs.attention_block, load)
            return costs.hbm_latency + max(op.kv_bytes / costs.hbm_rate, deep) + costs.epilogue
        if op.kind == "attention_merge":
            return rounds * -(-op.terms // 8) * costs.l2_latency + costs.epilogue
        if op.kind == "route":
            return costs.l2_latency + costs.route
        if op.kind == "commit":
            return costs.l2_latency + costs.commit
        return costs.l2_latency + rounds * costs.reduce_unit

    # ---- figures -------------------------------------------------------------------------------------------

    def measure_flight(self) -> None:
        """Time with less than 64 KiB in flight per sampled SM, from its requests and landings."""
        found = {"expert list": 0.0, "other": 0.0}
        for c in self.sample:
            level, held, last = 0.0, False, 0.0
            marks = [(t, 0, change) for t, change in self.flight[c]] + [(t, 1, on) for t, on in self.held[c]]
            for time, kind, value in sorted(marks, key=lambda m: (m[0], m[1])):
                if level < IN_FLIGHT:
                    found["expert list" if held else "other"] += (time - last) / len(self.sample)
                last = time
                if kind == 0:
                    level += value
                else:
                    held = bool(value)
        if self.sample:
            self.result.starved = found

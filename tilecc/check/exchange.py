"""Exchanges between ranks: which op pushes what a poll waits for, and who reads whose words."""

from __future__ import annotations

from tilecc.check.sync import Loop, OpSync, Statement, SyncProgram


def touches(body: tuple[Statement, ...], verb: str, buffer: str) -> bool:
    """Whether a script has such a statement."""
    return any(
        touches(s.body, verb, buffer) if isinstance(s, Loop) else (s.verb, s.buffer) == (verb, buffer)
        for s in body
    )


class Exchanges:
    """The pushes of a step in order. A poll reads what the last push before it wrote."""

    def __init__(self, program: SyncProgram) -> None:
        self.slots = {b.name: b.slots for b in program.buffers if b.slots}
        self.ordinal: dict[tuple[str, int], int] = {}
        """Exchange of a buffer that a row takes part in, counted within the step."""
        self.per_step = dict.fromkeys(self.slots, 0)
        self.sources: dict[tuple[str, int], tuple[OpSync, int]] = {}
        for index, row in enumerate(program.rows):
            op = program.op(row.op)
            for buffer in self.slots:
                if any(touches(s.body, "send", buffer) for s in op.scripts):
                    self.ordinal[buffer, index] = self.per_step[buffer]
                    self.sources[buffer, self.per_step[buffer]] = (op, row.layer)
                    self.per_step[buffer] += 1
                elif any(touches(s.body, "receive", buffer) for s in op.scripts):
                    self.ordinal[buffer, index] = self.per_step[buffer] - 1

    def number(self, buffer: str, step: int, row: int) -> int:
        """The exchange that a row takes part in, counted from the first step."""
        return step * self.per_step[buffer] + self.ordinal[buffer, row]

    def source(self, buffer: str, row: int) -> tuple[OpSync, int]:
        """Op and layer of the push that a polling row reads."""
        return self.sources[buffer, self.ordinal[buffer, row] % self.per_step[buffer]]

    @staticmethod
    def parts(task: int, polls: int, pushes: int) -> range:
        """Pushing tasks whose words a polling task reads: as few as there can be, so that nothing is ordered
        by more than it waits for."""
        if pushes == 0:
            return range(0)
        return range(task, pushes, polls) if task < pushes else range(task % pushes, task % pushes + 1)

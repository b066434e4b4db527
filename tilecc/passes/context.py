"""What a pass may know besides its IR, and where it writes down what it decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilecc.target import Target


@dataclass(frozen=True)
class Decision:
    """One choice of the compiler, for `tilecc inspect`: what was chosen for which subject, and why."""

    pass_name: str
    subject: str
    choice: str
    reason: str


@dataclass
class PassContext:
    """Target and user options; `ranks` is the size of the tensor-parallel group. `decisions` grows in the
    order of the passes, so it is deterministic."""

    target: Target
    max_context: int
    max_seqs: int
    ranks: int = 1
    decisions: list[Decision] = field(default_factory=list)

    def decide(self, pass_name: str, subject: str, choice: str, reason: str) -> None:
        """Record a choice once, however many layers repeat it."""
        decision = Decision(pass_name, subject, choice, reason)
        if decision not in self.decisions:
            self.decisions.append(decision)

"""Compares the tokens of a run with what the PyTorch reference would have chosen at each place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOGIT_ERROR = 1e-2
"""Bound on |kernel - reference| / max |logit| against the reference rounded at the kernel's own points. Sums
in another order land on the other side of a rounding border now and then, and may so exchange two experts of
nearly equal score; tests/e2e separates the two. Two logits closer than twice the bound may change places
without either side being wrong."""


@dataclass(frozen=True)
class Difference:
    """A place where the reference would have chosen another token. ``margin`` in parts of max |logit|."""

    position: int
    token: int
    reference: int
    margin: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison of ``count`` tokens. ``margin`` is the smallest of the tokens that agree."""

    count: int
    differences: tuple[Difference, ...]
    margin: float

    @property
    def ok(self) -> bool:
        """True if every difference is a near tie."""
        return all(d.margin <= 2 * LOGIT_ERROR for d in self.differences)

    def line(self) -> str:
        """The verdict in one line."""
        if not self.differences:
            return f"all {self.count} tokens are the greedy choice of the PyTorch reference"
        agree = self.count - len(self.differences)
        kind = "the others are near ties" if self.ok else "the results differ"
        return f"{agree} of {self.count} tokens are the greedy choice of the PyTorch reference; {kind}"

    def text(self) -> str:
        """The verdict and every difference."""
        lines = [f"greedy      {self.line()}"]
        for d in self.differences:
            lines.append(
                f"  position {d.position}: {d.token}, reference {d.reference},"
                f" margin {d.margin:.2e} of the largest logit"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The fields, with ``ok`` and the bound."""
        return asdict(self) | {"ok": self.ok, "bound": 2 * LOGIT_ERROR}


def verify_greedy(
    model: Path, checkpoint: Path, prompt: list[int], tokens: list[int], kv: str = "bf16"
) -> Verdict:
    """Feed prompt and tokens to the reference, whose cache has the format `kv`, and compare its choice at
    every new token."""
    from tilecc.runtime.devices.reference import reference_logits

    if not tokens:
        return Verdict(0, (), 0.0)
    logits = reference_logits(model, checkpoint, [*prompt, *tokens[:-1]], "bf16", kv)
    logits = logits[len(prompt) - 1 :]
    differences = []
    smallest = float("inf")
    for place, (row, token) in enumerate(zip(logits, tokens, strict=True)):
        largest = float(abs(row).max())
        best = int(row.argmax())
        if best == token:
            others = row.copy()
            others[token] = -float("inf")
            smallest = min(smallest, float(row[token] - others.max()) / largest)
        else:
            margin = float(row[best] - row[token]) / largest
            differences.append(Difference(len(prompt) + place, token, best, margin))
    return Verdict(len(tokens), tuple(differences), smallest)

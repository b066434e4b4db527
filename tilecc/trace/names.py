"""Names of the values of a Graph: readable, from the module path and the role, the same in every run."""

from __future__ import annotations

from collections.abc import Sequence

from tilecc.ir.graph_ops import GRAPH_OPS

# Ops named after their input: the suffix they add to it.
_SUFFIX = {
    "round": "_bf16",
    "round_e4m3": "_e4m3",
    "rope": "_rope",
    "scale": "_scaled",
    "silu": "_silu",
    "argmax": "_argmax",
    "mul": "_mul",
    "split_heads": "_heads",
}
# Ops named after their weight.
_WEIGHTED = ("embedding", "embed_masked", "linear", "rms_norm")


class Names:
    """Hands out unique names. `taken` are the names of inputs, params and states."""

    def __init__(self, taken: Sequence[str]) -> None:
        self.taken = {name: index for index, name in enumerate(taken)}

    def unique(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, ... if it is taken."""
        count, chosen = 1, name
        while chosen in self.taken:
            count += 1
            chosen = f"{name}_{count}"
        self.taken[chosen] = len(self.taken)
        return chosen

    def results(self, op: str, inputs: Sequence[str], module: str) -> list[str]:
        """Names of the results of a node that `module` makes from `inputs`."""
        prefix = f"{module}." if module else ""
        made = [name for name, _ in GRAPH_OPS[op].results]
        if len(made) > 1:
            return [self.unique(prefix + name) for name in made]
        if op in _WEIGHTED:
            weight = inputs[1]
            base = next((weight.removesuffix(s) for s in (".weight", "_weight") if weight.endswith(s)), "")
            return [self.unique(base or f"{weight}_out")]
        if op == "add":
            # a residual sum is named after its branch, which is made later than the stream it is added to
            return [self.unique(f"{max(inputs, key=self.taken.__getitem__)}_add")]
        if op in _SUFFIX:
            return [self.unique(inputs[0] + _SUFFIX[op])]
        return [self.unique(prefix + op)]

    def node(self, op: str, results: Sequence[str], module: str) -> str:
        """Name of a node: that of its only result, or its place and op."""
        if len(results) == 1:
            return results[0]
        prefix = f"{module}." if module else ""
        # a second use in one module has numbered results; its node gets the same number
        _, _, count = results[0].removeprefix(prefix).partition("_")
        return f"{prefix}{op}" + (f"_{count}" if count.isdigit() else "")

"""Reads what ``ptxas -v`` says about each kernel: registers, stack, spills, shared memory, barriers."""

from __future__ import annotations

import re

import msgspec


class KernelFacts(msgspec.Struct, frozen=True):
    """One ``__global__`` on one target. Bytes are per thread, except shared memory (static, per CTA)."""

    name: str
    target: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    static_smem_bytes: int
    barriers: int


_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'")
_PROPERTIES = re.compile(r"Function properties for (?P<name>\w+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?")
_SMEM = re.compile(r"(\d+) bytes smem")


def parse_ptxas(text: str) -> list[KernelFacts]:
    """Return the facts of every entry function in ``text``, in the order printed.

    An entry whose lines are incomplete (two ptxas wrote at once) is left out.
    """
    found: list[KernelFacts] = []
    entry: tuple[str, str] | None = None
    own = False
    stack: tuple[int, int, int] | None = None
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, own, stack = (match["name"], match["target"]), False, None
        elif match := _PROPERTIES.search(line):
            # Device functions that were not inlined have properties of their own.
            own = entry is not None and match["name"] == entry[0]
        elif (match := _STACK.search(line)) and own and stack is None:
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and entry is not None and stack is not None:
            smem = _SMEM.search(line)
            found.append(
                KernelFacts(
                    entry[0], entry[1], int(match[1]), *stack, int(smem[1]) if smem else 0, int(match[2] or 0)
                )
            )
            entry, stack = None, None
    return found

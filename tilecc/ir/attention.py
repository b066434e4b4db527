"""Sizes of the attention ops that several passes and rules need: the KV cache in fragment order, partials,
exchange. The layouts are those of templates/include/attn_common.cuh; its static_asserts check the sizes.
"""

from __future__ import annotations

KV_FORMATS = ("bf16", "fp8")
"""Element formats of the KV cache: bf16, or e4m3 with scale 1."""

KV_BLOCK = 16
"""Positions of one block of the cache."""

CHUNK_BLOCKS = 4
"""Blocks of one chunk: split i of a global layer owns every nsplit-th chunk from chunk i."""

MAX_TASK_ROWS = 4
"""Rows of a task of a global layer. Eight would read keys and values once for a full step, but leave no
registers to more warps: heads of 192 and values of 128 take 112 for a row of one warp, 80 for one of two."""

ROUND_TURNS = 3
"""Blocks of keys that one consumer warp keeps scores of at once."""

MAX_FRAGMENT_REGISTERS = 144
"""Of `fragment_registers`: heads of 192 with values of 192 compile without spills (docs/decisions.md)."""

_STEP_BYTES = {"bf16": 512, "fp8": 256}


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def key_bytes(head_dim: int, kv: str) -> int:
    """Keys of one block and KV head: a k16 step of two n8 tiles per 16 dimensions."""
    return _ceil_div(head_dim, 16) * _STEP_BYTES[kv]


def value_bytes(v_head_dim: int, kv: str) -> int:
    """Values of one block and KV head: a k16 step (the positions) of two n8 tiles per 16 dimensions."""
    return _ceil_div(v_head_dim, 16) * _STEP_BYTES[kv]


def block_bytes(head_dim: int, v_head_dim: int, kv: str) -> int:
    """One block of the cache of one KV head."""
    return key_bytes(head_dim, kv) + value_bytes(v_head_dim, kv)


def query_bytes(head_dim: int) -> int:
    """Queries of one row and KV head: an m16k16 operand in bf16 per 16 dimensions."""
    return _ceil_div(head_dim, 16) * 512


def task_rows(consumers: int) -> int:
    """Rows of one task of a global layer: the consumer warps take one each, or share them evenly."""
    return min(consumers, MAX_TASK_ROWS)


def fragment_registers(head_dim: int, v_head_dim: int, window: int, consumers: int) -> int:
    """Registers per thread that hold a row's queries and its outputs, the largest arrays of a consumer
    warp. In a sliding layer all warps share the outputs, in a global one those of a row."""
    sharing = consumers if window else consumers // task_rows(consumers)
    return 4 * _ceil_div(head_dim, 16) + 8 * _ceil_div(_ceil_div(v_head_dim, 16), sharing)


def partial_bytes(v_head_dim: int) -> int:
    """Partial result of one (row, KV head, split): f32 accumulators, then maximum and sum of 16 heads."""
    return _ceil_div(v_head_dim, 16) * 1024 + 128


def window_blocks(window: int) -> int:
    """Blocks that `window` consecutive positions can touch."""
    return (window + 14) // KV_BLOCK + 1


def window_turns(window: int, consumers: int) -> int:
    """Blocks of keys per consumer warp and round."""
    return min(ROUND_TURNS, _ceil_div(window_blocks(window), consumers))


def exchange_bytes(window: int, consumers: int) -> int:
    """Exchange slot of a sliding layer: probabilities of a round, maxima and sums of every warp's heads."""
    return consumers * (window_turns(window, consumers) * 1024 + 128) if window else 0

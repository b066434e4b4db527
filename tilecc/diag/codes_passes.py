"""TC022x: lowering a traced model, from the Graph to the Program."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0220": Entry(
        title="op cannot be lowered here",
        explanation="""
Each op that tilecc traces is known by itself, but the kernel runs them in fused forms: a projection with the
norm before it, attention with its rounding, a SwiGLU, a routed expert layer, a residual addition. The op
named here stands where no such form fits, or it reads a value that the kernel no longer keeps at that point:
there is one residual stream, one attention output and one hidden vector. The note lists the forms.
""",
        wrong="""
y = torch.ops.tilecc.round(torch.ops.tilecc.rms_norm(x, w, eps))
x = torch.ops.tilecc.round(y + self.o_proj(o))      # adds to y, not to the residual stream
""",
        right="""
x = torch.ops.tilecc.round(x + self.o_proj(o))
""",
    ),
    "TC0221": Entry(
        title="missing rounding point",
        explanation="""
Between its ops the kernel keeps activations in bf16. The model says where by `torch.ops.tilecc.round`, so
that the same file run by PyTorch rounds at the same points and both can be compared closely. A value that
the kernel keeps is not rounded in the model.
""",
        wrong="x = x + self.o_proj(o)",
        right="x = torch.ops.tilecc.round(x + self.o_proj(o))",
    ),
    "TC0222": Entry(
        title="size does not fit the kernel",
        explanation="""
Matrix instructions work on blocks of 16 rows and 16 columns, MXFP4 weights carry one scale per 32 columns,
one tile holds at most 16 query heads of a KV head, and the routing record holds at most 8 experts per row.
Most sizes are padded; the one named here cannot be.
""",
        wrong='{"hidden_size": 100}',
        right='{"hidden_size": 96}',
    ),
    "TC0224": Entry(
        title="size does not divide into the ranks",
        explanation="""
Tensor parallelism cuts heads, the width of every MLP and expert, and the vocabulary into one equal part per
rank. The fused QKV matrix is stored in one chunk of rows per KV head, which are not cut, and a cut along the
columns must not split a group of columns that share one scale (128 for FP8, 32 for MXFP4).
""",
        wrong="tilecc compile model.py --target sm_90a --tp 3",
        right="tilecc compile model.py --target sm_90a --tp 4",
    ),
    "TC0225": Entry(
        title="part of a step that has no kernel yet",
        explanation="""
The draft step (models/dflash.py) and the taps of a target for it are traced and sharded, and the reference
computes them; `fuse` has no form for them yet, so they cannot become tiles.
""",
        wrong="tilecc compile models/dflash.py --target sm_90a",
        right="tilecc compile models/dflash.py --target sm_90a --tp 8 --to shard",
    ),
    "TC0223": Entry(
        title="shared memory over budget",
        explanation="""
A CTA holds a ring of weight stages, a ring of activation chunks or KV blocks, and the partial sums of its
consumer warps in shared memory. The slots are as large as the largest op needs; with these attention heads
not even the shortest weight ring is left on the target. The note gives the bytes.
""",
        wrong='{"head_dim": 1024, "v_head_dim": 1024}',
        right='{"head_dim": 192, "v_head_dim": 128}',
    ),
}

"""TC07xx: target, schedule and command line."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0701": Entry(
        title="unknown target",
        explanation="""
A target is a table of the limits and rates of one GPU architecture. `tilecc targets` lists those that exist.
""",
        wrong="tilecc compile MODEL --target sm_90",
        right="tilecc compile MODEL --target sm_90a",
        exit_code=2,
    ),
    "TC0702": Entry(
        title="unknown diagnostic code",
        explanation="""
`tilecc explain` takes a code as it stands in an error message, such as TC0302. `tilecc explain --list` prints
all of them.
""",
        wrong="tilecc explain TC9999",
        right="tilecc explain TC0302",
        exit_code=2,
    ),
    "TC0703": Entry(
        title="command line value not usable",
        explanation="""
An option has a value of the wrong form: ids that are not integers, an output path that cannot be written, a
count below one. The diagnostic names the option and what it takes.
""",
        wrong="tilecc logits MODEL --checkpoint DIR --ids 1;2 -o out.npy",
        right="tilecc logits MODEL --checkpoint DIR --ids 1,2 -o out.npy",
        exit_code=2,
    ),
    "TC0704": Entry(
        title="no target given",
        explanation="""
`tilecc compile` needs `--target`: shared memory, registers and instructions differ between architectures, so
there is no sensible default.
""",
        wrong="tilecc compile models/mimo_tiny.py",
        right="tilecc compile models/mimo_tiny.py --target sm_90a",
        exit_code=2,
    ),
    "TC0705": Entry(
        title="several ranks cannot be emitted yet",
        explanation="""
With `--tp N` the graph is cut for one of N tensor-parallel ranks, with the exchanges between them. `--to
shard` and `--to tiles` print it. The exchanges have no emitted form yet: kernels are made for one rank only.
""",
        wrong="tilecc compile MODEL --target sm_90a --tp 8",
        right="tilecc compile MODEL --target sm_90a --tp 8 --to tiles",
        exit_code=2,
    ),
    "TC0706": Entry(
        title="the model has no KV cache of this format",
        explanation="""
`--kv fp8` stores keys and values as e4m3 with scale 1. The model file decides where they are rounded: its
module has an attribute `kv_format`, which the compiler sets. A model without it has a bf16 cache only.
""",
        wrong="tilecc compile MODEL --target sm_90a --kv fp8",
        right="tilecc compile MODEL --target sm_90a --kv bf16",
        exit_code=2,
    ),
}

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
shard`, `--to tiles` and `--to program` print it, and `tilecc check` takes the program. The exchanges have no
emitted form yet: kernels are made for one rank only.
""",
        wrong="tilecc compile MODEL --target sm_90a --tp 8",
        right="tilecc compile MODEL --target sm_90a --tp 8 --to program",
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
    "TC0710": Entry(
        title="schedule file cannot be used",
        explanation="""
A schedule is a Python file with a function `schedule(s)`, which calls methods of `s` (tilecc.schedules) to
pin or bound choices of the compiler. The file is missing, has no such function, or raised an exception; the
diagnostic points at the line.
""",
        wrong="splits = 2",
        right="""
def schedule(s):
    s.op("o_proj", splits=2)
""",
    ),
    "TC0711": Entry(
        title="unknown name in a schedule",
        explanation="""
A request names an op, a hand-off, a ring or a choice that does not exist. Ops are called by their label
("o_proj", in every layer), by their full name ("layers.3.o_proj") or "*"; `tilecc compile --to tiles` prints
them. The note lists what exists.
""",
        wrong='s.op("o_prj", split=2)',
        right='s.op("o_proj", splits=2)',
    ),
    "TC0712": Entry(
        title="contradictory requests",
        explanation="""
Two requests of a schedule exclude each other: the same choice is given two values, or two choices that are
each legal are not legal together (a stage of the weight ring holds a limited number of blocks). Both lines
are shown; the help says what is left when one of them stays.
""",
        wrong="""
s.op("head", group=8)
s.op("head", group=4)
""",
        right='s.op("head", group=4)',
    ),
    "TC0713": Entry(
        title="request of a schedule is not legal",
        explanation="""
A schedule chooses among what is legal; it cannot make the kernel wrong or exceed a limit of the target. The
help lists the legal values for this program, the note says why the one asked for is not among them.
""",
        wrong='s.edge("qkv", "attention", kind="mbarrier")',
        right='s.edge("qkv", "attention", kind="counter")',
    ),
    "TC0714": Entry(
        title="request of a schedule that nothing asks for",
        explanation="""
The thing exists, but this program makes no such choice for it: an op without a K split has no `splits`, and
instances of one label share their rotation. A request without effect is an error, since it looks as if it had
one.
""",
        wrong='s.op("embed", splits=2)',
        right='s.op("o_proj", splits=2)',
    ),
    "TC0707": Entry(
        title="the model has no such taps",
        explanation="""
`--taps` names layers of the target model whose outputs a DFlash draft reads; they become further outputs of
the step. The model's module says by its attribute `tap_layers` which layers it can return (docs/models.md).
""",
        wrong="tilecc compile models/mimo_v25_pro.py --target sm_90a --to trace --taps 0,15,70",
        right="tilecc compile models/mimo_v25_pro.py --target sm_90a --to trace --taps 0,15,69",
        exit_code=2,
    ),
    "TC0716": Entry(
        title="IR text for another pass or target",
        explanation="""
A pass takes the IR of one level, and of a TileGraph it needs what earlier passes have filled in; the text's
field `passes` says which ones made it. A TileGraph or Program is for one target, since its shapes depend on
it.
""",
        wrong="tilecc opt 00-graph.txt -p rings",
        right="tilecc opt 00-graph.txt -p fuse,tile,edges,order,place,roles,rings",
    ),
    "TC0715": Entry(
        title="schedule for another target",
        explanation="""
The schedule file says by `s.only_for(...)` which targets it was written for, and the compilation is for
another one.
""",
        wrong="tilecc compile MODEL --target sm_90a --schedule schedules/mimo_v25_pro_8xb200.py",
        right="tilecc compile MODEL --target sm_100a --schedule schedules/mimo_v25_pro_8xb200.py",
    ),
}

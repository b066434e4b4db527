"""TC01xx: model file and tracing. TC02xx: lowering and shapes."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0101": Entry(
        title="model file not found",
        explanation="""
The model is given as the path of a Python file that defines `decode_step`. The path does not exist, is a
directory, or does not end in `.py`.
""",
        wrong="tilecc compile models/mimo_tinny.py --target sm_90a",
        right="tilecc compile models/mimo_tiny.py --target sm_90a",
    ),
    "TC0102": Entry(
        title="model file without a decode step",
        explanation="""
A model file describes one decode step. It must define a function `decode_step(config=None)` that returns a
`torch.nn.Module`. The file was imported without an error, but no such function was found.
""",
        wrong="""
import torch

class Net(torch.nn.Module): ...
""",
        right="""
import torch

class Net(torch.nn.Module): ...

def decode_step(config: dict | None = None) -> torch.nn.Module:
    return Net(config or DEFAULTS)
""",
    ),
    "TC0103": Entry(
        title="model file cannot be imported",
        explanation="""
Importing the model file, or calling its `decode_step`, raised an exception. The diagnostic points at the
innermost line of the model file; set TILECC_BACKTRACE=1 for the whole traceback.
""",
        wrong="""
def decode_step(config=None):
    return Net(hiden=256)      # TypeError
""",
        right="""
def decode_step(config=None):
    return Net(hidden=256)
""",
    ),
    "TC0104": Entry(
        title="decode step does not follow the contract",
        explanation="""
`decode_step` must return a `torch.nn.Module` with `forward(tokens, positions, seqs, *caches)`,
`caches(device, max_seqs, max_context)` and `checkpoint_spec()`. Something is missing or has another form.
The page `docs/models.md` describes the contract.
""",
        wrong="""
def decode_step(config=None):
    return "a module"
""",
        right="""
def decode_step(config=None):
    return Net(config)         # torch.nn.Module with forward, caches and checkpoint_spec
""",
    ),
    "TC0105": Entry(
        title="op that cannot be lowered",
        explanation="""
The traced step contains a PyTorch op for which there is no tile rule. `tilecc ops` lists the ops that can be
lowered. Rewrite the line with those, or add the op (one Python file, one `.cuh` file, one test).
""",
        wrong="x = torch.fft.rfft(x)",
        right="x = F.linear(x, self.mix)",
    ),
    "TC0106": Entry(
        title="model cannot be traced",
        explanation="""
`torch.export` could not turn the decode step into a graph. The usual cause is Python control flow that
depends on the values of a tensor; a decode step must be the same graph for every input.
""",
        wrong="""
if x.sum() > 0:
    x = self.a(x)
""",
        right="x = torch.where(mask, self.a(x), x)",
    ),
    "TC0107": Entry(
        title="model configuration not usable",
        explanation="""
A key of the model's `config.json` is missing or has a value that the model file cannot use. The diagnostic
names the key, the value and what is allowed.
""",
        wrong='{"num_attention_heads": 7, "num_key_value_heads": 4}',
        right='{"num_attention_heads": 8, "num_key_value_heads": 4}',
    ),
    "TC0108": Entry(
        title="configuration file not readable",
        explanation="""
The file given with `--config`, or the checkpoint's `config.json`, does not exist or is not a JSON object.
""",
        wrong="tilecc compile models/mimo_v2.py --target sm_90a --config README.md",
        right="tilecc compile models/mimo_v2.py --target sm_90a --config config.json",
    ),
    "TC0109": Entry(
        title="decode step raises an exception",
        explanation="""
Tracing runs the module's `forward` (and `caches`, `checkpoint_spec`) once on meta tensors, which have
shapes but no values. It raised an exception. The diagnostic points at the innermost line of the model; set
TILECC_BACKTRACE=1 for the whole traceback.
""",
        wrong="""
def forward(self, tokens, positions, seqs, *caches):
    x = F.embedding(tokens, self.embed)
    x = x + self.bias[:7]      # RuntimeError: sizes differ
""",
        right="""
def forward(self, tokens, positions, seqs, *caches):
    x = F.embedding(tokens, self.embed)
""",
    ),
    "TC0202": Entry(
        title="dimension does not fit the quantisation block",
        explanation="""
MXFP4 has one scale per 32 columns; block FP8 has one scale per 128 x 128 block. The inner dimension of a
quantised matrix must be a multiple of what its format needs.
""",
        wrong='{"moe_intermediate_size": 100}',
        right='{"moe_intermediate_size": 128}',
    ),
    "TC0203": Entry(
        title="dtype that cannot be lowered",
        explanation="""
All compute of a decode step is float32, with values rounded to bf16 where the kernel rounds them
(`torch.ops.tilecc.round`); token ids, positions and indices are int64. Parameters are held in float32,
whatever their stored format. A value of another dtype was met.
""",
        wrong="x = F.embedding(tokens, self.embed.bfloat16())",
        right="x = F.embedding(tokens, self.embed)",
    ),
    "TC0210": Entry(
        title="malformed IR text",
        explanation="""
The text of an IR (`ir/*.txt` of a package) does not parse. It starts with a line `tilecc.<ir> <version>`,
followed by one constructor call made of nodes, strings, numbers, lists and dicts with string keys. The
diagnostic has the line.
""",
        wrong="""
tilecc.graph 2
Graph("tiny", nodes=[Node("x")])
""",
        right="""
tilecc.graph 2
Graph("tiny", nodes=[Node("x", "silu", inputs=["h"], results=[Value("x", "f32", ["T", 256])])])
""",
    ),
    "TC0211": Entry(
        title="IR text of another version",
        explanation="""
The first line of an IR text names the IR and its version. The version changes whenever an IR gains or loses
a field or a rule, and older text is not converted: compile the model again.
""",
        wrong="tilecc.graph 0",
        right="tilecc.graph 2",
    ),
    "TC0213": Entry(
        title="IR text whose values do not belong together",
        explanation="""
IR text that was edited by hand parses and keeps every rule of its verifier, but a pass that goes on from it
fails: a size was changed in one place and not in the others, or a name was exchanged for another one that
exists. The message has what the pass met. TILECC_BACKTRACE=1 shows where.
""",
        wrong='QkvGlobal with "head_dim": 24 beside "rotary": 64',
        right='QkvGlobal with "head_dim": 64 and "rotary": 64',
    ),
    "TC0212": Entry(
        title="IR breaks a rule of its verifier",
        explanation="""
Every IR has a list of small named rules (a value is defined before it is used, shapes agree, ...). The
rule's name stands in brackets at the end of the message. For an IR that was edited by hand, correct it
there; for one that the compiler made from a model file it points to an op that was used in a way that
cannot be lowered.
""",
        wrong='Node("h", "add", inputs=["x", "missing"], results=[...])',
        right='Node("h", "add", inputs=["x", "y"], results=[...])',
    ),
}

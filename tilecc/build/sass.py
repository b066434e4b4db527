"""Reads disassembled SASS: instructions with source lines, inline chains, control codes and execution pipes.

The text is that of ``nvdisasm -c -hex -gi``: labels, ``/*17b0*/ @P0 BRA `(.L_x_42) ;`` with the 128-bit
encoding in two comments, and ``//## File "f", line n inlined at ...`` before the instructions of a line.

Control codes (sm_70 to sm_100) are bits of the encoding: stall cycles 105-108, yield 109, write scoreboard
110-112, read scoreboard 113-115 (7: none), scoreboards waited for 116-121 (Jia et al., arXiv:1804.06826,
section 2.1). What is decoded from them is labelled so in every report.

Pipes of Hopper (Nsight Compute's pipeline descriptions; NVIDIA's developer forum, topic 302018, for GH100):
the ALU pipe runs integer, logic, comparisons and permutations; FMA is two halves, of which the heavy one
alone runs IMAD, either runs FP32, and both together run a packed 16-bit operation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PIPES: dict[str, str] = {
    "integer": "integer, logic, comparison, permutation (ALU pipe)",
    "imad": "integer multiply-add, also as a move or shift (FMA-heavy pipe)",
    "conversion": "number format conversions",
    "fp32": "FP32 arithmetic (FMA pipe)",
    "half2": "packed 16-bit arithmetic (both halves of the FMA pipe)",
    "special": "transcendental unit: MUFU, POPC, FLO",
    "tensor": "matrix multiply-accumulate",
    "shared": "shared memory loads and stores",
    "global": "global memory, bulk copies, constants",
    "move": "moves, shuffles, special registers",
    "barrier": "mbarriers, named barriers, fences",
    "control": "branches and convergence",
    "uniform": "uniform datapath (one operation per warp, not per lane)",
    "other": "not classified",
}
"""Class of an instruction -> what it counts. Every class issues through the warp scheduler."""

_CLASSES: dict[str, str] = {
    "integer": "IADD IADD3 LOP LOP3 SHF SHL SHR PRMT LEA ISETP ISET SEL VIADD VIADDMNMX IMNMX VIMNMX VIMNMX3"
    " PLOP3 BMSK SGXT IABS VABSDIFF FMNMX FMNMX3 FSETP FSET FSEL BREV ISCADD I2IP",
    "imad": "IMAD IMUL IDP IDP4A",
    "conversion": "F2F F2FP I2F I2FP F2I I2I FRND F2IP",
    "fp32": "FFMA FMUL FADD FSWZADD FFMA2 FMUL2 FADD2 FCHK",
    "half2": "HFMA2 HMUL2 HADD2 HSETP2 HMNMX2 HSET2",
    "special": "MUFU POPC FLO",
    "tensor": "HMMA HGMMA IMMA IGMMA QGMMA QMMA OMMA DMMA BMMA UTCHMMA UTCQMMA UTCOMMA UTCIMMA",
    "shared": "LDS LDSM STS STSM ATOMS",
    "global": "LD LDG ST STG LDL STL ATOM ATOMG RED REDG LDGSTS UBLKCP UBLKPF UBLKRED UTMALDG UTMASTG"
    " UTMACMDFLUSH CCTL LDC LDCU ULDC LDGMC LDTM STTM",
    "move": "MOV SHFL S2R CS2R R2P P2R VOTE VOTEU MATCH R2UR MOVM REDUX CREDUX CALC",
    "barrier": "SYNCS BAR B2R WARPSYNC DEPBAR LDGDEPBAR MEMBAR FENCE NANOSLEEP ARRIVES WARPGROUP WARPGROUPSET"
    " UCGABAR_ARV UCGABAR_WAIT ERRBAR CGAERRBAR ACQBULK USETMAXREG UTCBAR",
    "control": "BRA BRX BRXU BSSY BSYNC CALL RET EXIT BREAK NOP JMP JMX BMOV YIELD BPT KILL ELECT PREEXIT"
    " ENDCOLLECTIVE",
}
_CLASS_OF = {opcode: name for name, opcodes in _CLASSES.items() for opcode in opcodes.split()}


@dataclass(frozen=True)
class Control:
    """Control codes of one instruction, decoded from the encoding. A scoreboard is 0 to 5, -1 for none."""

    stall: int
    yield_: bool
    write: int
    read: int
    wait: tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """A source line; the frames of an instruction go from the innermost outwards."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. `opcode` is whole ("HMMA.16816.F32.BF16"), `predicate` "" or "@!P0"."""

    offset: int
    predicate: str
    opcode: str
    operands: str
    control: Control
    frames: tuple[Frame, ...]

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def pipe(self) -> str:
        """The class, a key of PIPES."""
        known = _CLASS_OF.get(self.base)
        if known is not None:
            return known
        return "uniform" if self.base.startswith("U") or self.base == "S2UR" else "other"

    @property
    def target(self) -> str | None:
        """The label that a control instruction names, if it names one."""
        found = _LABEL_OPERAND.search(self.operands)
        return found[1] if found else None


@dataclass
class Listing:
    """One function (a ``__global__`` and what it calls): instructions by address, offsets of labels."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_SECTION = re.compile(r"^\.text\.(?P<name>\S+):")
_LINE = re.compile(r'^\s*//## File "(?P<file>[^"]*)", line (?P<line>\d+)(?P<more> inlined at)?')
_LABEL = re.compile(r"^(?P<name>[.$\w][^\s:]*):\s*$")
_CODE = re.compile(
    r"^\s*/\*(?P<offset>[0-9a-f]{4,})\*/\s+(?:\{\s*)?(?P<pred>@!?U?P[T\d]\s+)?(?P<op>[A-Z][\w.]*)(?P<args>[^;]*);"
    r".*/\* 0x(?P<low>[0-9a-f]{16}) \*/"
)
_HIGH = re.compile(r"^\s*/\* 0x(?P<high>[0-9a-f]{16}) \*/\s*$")
_LABEL_OPERAND = re.compile(r"`\((?P<label>[^)]+)\)")
NO_SCOREBOARD = 7


def decode_control(high: int) -> Control:
    """Control codes from the upper 64 bits of an encoding."""

    def bits(first: int, count: int) -> int:
        return (high >> (first - 64)) & ((1 << count) - 1)

    write, read, mask = bits(110, 3), bits(113, 3), bits(116, 6)
    return Control(
        stall=bits(105, 4),
        yield_=bool(bits(109, 1)),
        write=-1 if write == NO_SCOREBOARD else write,
        read=-1 if read == NO_SCOREBOARD else read,
        wait=tuple(i for i in range(6) if mask >> i & 1),
    )


def parse_sass(text: str) -> list[Listing]:
    """Return the functions of ``nvdisasm -c -hex -gi`` output, in the order printed.

    Raises ValueError for an instruction without its second encoding word: another format of the tool.
    """
    found: list[Listing] = []
    frames: list[Frame] = []
    fresh = True  # the next source line begins a new chain
    half: tuple[re.Match[str], tuple[Frame, ...]] | None = None
    for line in text.splitlines():
        if half is not None:
            second = _HIGH.match(line)
            if second is None:
                raise ValueError(f"no second encoding word after {half[0]['op']} at {half[0]['offset']}")
            m, chain = half
            found[-1].instructions.append(
                Instruction(
                    int(m["offset"], 16), (m["pred"] or "").strip(), m["op"], m["args"].strip(),
                    decode_control(int(second["high"], 16)), chain,
                )
            )  # fmt: skip
            half = None
        elif match := _SECTION.match(line):
            found.append(Listing(match["name"]))
            frames, fresh = [], True
        elif match := _LINE.match(line):
            if fresh:
                frames, fresh = [], False
            frames.append(Frame(match["file"], int(match["line"])))
        elif match := _CODE.match(line):
            fresh = True
            half = (match, tuple(frames))
        elif found and (match := _LABEL.match(line)):
            # A label names the next instruction; nothing is printed between them but line information.
            size = len(found[-1].instructions)
            found[-1].labels[match["name"]] = 16 * size
    return [f for f in found if f.instructions]


def shared_wavefronts(instruction: Instruction) -> int:
    """128-byte passes that a conflict-free warp access of shared memory takes: 4 bytes per lane and pass."""
    if instruction.base in ("LDSM", "STSM"):
        found = re.search(r"\.(\d)(?:\.|$)", instruction.opcode)
        return int(found[1]) if found else 1
    if ".128" in instruction.opcode:
        return 4
    return 2 if ".64" in instruction.opcode else 1

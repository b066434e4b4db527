"""The machine code of the micro-benchmarks is what their names say, and their text obeys the rules of emitted
text."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import costs
from tilecc.build.disassemble import find_tool
from tilecc.build.lint.check import lint_texts

TEXTS = ("params.cuh", "sync.cu", "copy.cu", "rates.cu")
KERNELS = ("micro_sync", "micro_copy", "micro_rates")
UNROLL = 64


def test_the_text_obeys_the_rules() -> None:
    """All but reading a clock for a record, which is what a measurement is."""
    found = lint_texts({costs.MICRO / name: (costs.MICRO / name).read_text() for name in TEXTS})
    assert {(d.code, Path(d.span.file).name if d.span else "") for d in found} <= {("TC0922", "params.cuh")}
    assert all("no logic may depend on a clock" in d.message for d in found)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    (path,) = costs.build(tmp_path_factory.mktemp("costs"), (costs.LIBRARY,))
    return path


def cuobjdump(library: Path, option: str) -> str:
    return subprocess.run(
        [find_tool("cuobjdump"), option, library], capture_output=True, text=True, check=True
    ).stdout


def test_no_kernel_has_stack_or_spills(library: Path) -> None:
    usage = cuobjdump(library, "-res-usage")
    found = dict(re.findall(r"Function (\w+):\s+REG:\d+ (STACK:\d+)", usage))
    assert {k: found[k] for k in KERNELS} == dict.fromkeys(KERNELS, "STACK:0")


@pytest.fixture(scope="module")
def mnemonics(library: Path) -> Counter[str]:
    """Instructions of micro_rates by name, without modifiers that the type does not need."""
    text = cuobjdump(library, "-sass")
    (body,) = re.findall(r"Function : micro_rates\n(.*?)(?=Function : |\Z)", text, re.DOTALL)
    names = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P[0-9T]+ )?([A-Z][A-Z0-9_.]*)", body)
    return Counter(names)


@pytest.mark.parametrize(
    "mnemonic",
    "LOP3.LUT SHF.R.U32.HI PRMT IMAD FFMA FADD HMUL2.BF16_V2 HFMA2.BF16_V2 F2FP.BF16.F32.PACK_AB "
    "MUFU.EX2 HMMA.16816.F32.BF16".split(),
)
def test_a_rate_is_measured_on_its_instruction(mnemonics: Counter[str], mnemonic: str) -> None:
    """One unrolled body for the latency, one for the rate: none of their operations may be folded away."""
    assert mnemonics[mnemonic] >= 2 * UNROLL, mnemonics.most_common(20)


def test_shared_loads_keep_their_width(mnemonics: Counter[str]) -> None:
    """The chain is unrolled whole, the rate by the 16 places of its pattern."""
    for width in ("LDS.128", "LDS.64", "LDS"):
        assert mnemonics[width] >= UNROLL + 16, mnemonics.most_common(20)

"""Line coverage of an emitted kernel: its .cu and the main loops it includes, run on the emulator.

    python -m tests.emulator.coverage [--package DIR --checkpoint DIR]

compiles the kernel (by default the one of `mimo_tiny`) with the host compiler's coverage, unoptimised, runs
it in a process of its own, and prints a table of lines reached. A line that is not reached must stand in
``unreached.txt`` with its reason, and one that stands there must exist and not be reached: else the exit code
is 1. The primitives themselves (``tk_*``) are not part of the kernel. Text of the main loops that no op of
the model needs is never instantiated, so it has no lines here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tilecc.build.emulator import KERNEL_FLAGS_VARIABLE, compiler

ROOT = Path(__file__).resolve().parents[2]
UNREACHED = Path(__file__).with_name("unreached.txt")


@dataclass
class Lines:
    """One file of the package: how often each line that has code ran; ``instances``: the same for each
    template instance that holds it, keyed by (line, mangled function)."""

    file: str
    text: list[str]
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    instances: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))

    @property
    def missed(self) -> list[int]:
        return sorted(line for line, count in self.counts.items() if not count)


def gcov() -> str | None:
    """Path of the gcov that belongs to the host compiler, None if there is none."""
    path = Path(compiler()[0])
    return shutil.which(path.name.replace("g++", "gcov"), path=f"{path.parent}:{os.environ.get('PATH', '')}")


def measure(package: Path, checkpoint: Path) -> list[Lines]:
    """Compile, run, and count the lines of the package's own files. Raises RuntimeError if the run fails."""
    tool = gcov()
    if tool is None:
        raise RuntimeError("no gcov beside the host compiler")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            KERNEL_FLAGS_VARIABLE: f"-O0 --coverage -dumpdir {folder}/",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.emulator.coverage", "--run"]
        command += ["--package", str(package), "--checkpoint", str(checkpoint)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run for coverage failed\n{done.stdout}{done.stderr}")
        Path(done.stdout.splitlines()[-1]).unlink()  # nobody else can use this library
        (counts,) = Path(folder).glob("*.gcda")
        told = subprocess.run(
            [tool, "--stdout", "--json-format", str(counts)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return _parse(json.loads(told), package)


def _parse(report: dict, package: Path) -> list[Lines]:  # type: ignore[type-arg]
    found = []
    for entry in report["files"]:
        path = (package / "kernels" / entry["file"]).resolve()
        if not path.is_relative_to(package.resolve()) or path.name.startswith(("tk_", "tilecc_")):
            continue
        lines = Lines(str(path.relative_to(package.resolve())), path.read_text().splitlines())
        for line in entry["lines"]:
            number, count = line["line_number"], line["count"]
            lines.counts[number] += count
            lines.instances[number, line.get("function_name", "")] += count
        found.append(lines)
    return sorted(found, key=lambda lines: lines.file)


def reasons() -> dict[tuple[str, str], str]:
    """(file, text of the line) -> why it is not reached, from ``unreached.txt``."""
    found = {}
    for line in UNREACHED.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, text, reason = (part.strip() for part in line.split(" | "))
            found[file, text] = reason
    return found


def problems(files: list[Lines], known: dict[tuple[str, str], str]) -> list[str]:
    """Lines that were not reached and are not known for it, and known ones that were reached or are gone."""
    missed = {(f.file, f.text[n - 1].strip()): n for f in files for n in f.missed}
    new = [
        f"{file}:{n}: not reached, no reason known: {text}"
        for (file, text), n in missed.items()
        if (file, text) not in known
    ]
    return new + [
        f"{UNREACHED.name}: {file} | {text}: reached, or gone"
        for file, text in known
        if (file, text) not in missed
    ]


def table(files: list[Lines]) -> str:
    """Lines of each file, and how many of them ran in every template instance that holds them."""
    rows = [("file", "lines", "reached", "in instances", "reached")]
    total = [0, 0, 0, 0]
    for f in files:
        numbers = [
            len(f.counts),
            sum(map(bool, f.counts.values())),
            len(f.instances),
            sum(map(bool, f.instances.values())),
        ]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        rows.append((f.file, *map(str, numbers)))
    rows.append(("all", *map(str, total)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def run(package: Path, checkpoint: Path) -> None:
    """A prompt of more than one step, decode with logits, and an answer that ends with a stop id."""
    from tilecc.runtime.devices.emulator import EmulatorDevice
    from tilecc.runtime.engine import Engine

    with Engine.open(package, checkpoint, grid=3) as engine:
        assert isinstance(engine.device, EmulatorDevice)
        vocab = engine.manifest.vocab
        prompt = [7919 * (i + 1) % vocab for i in range(11)]
        engine.logits(prompt)
        engine.session.reset()
        tokens = engine.generate(prompt, 4, stop_ids=()).tokens
        engine.session.reset()
        assert engine.generate(prompt, 4, stop_ids=[tokens[1]]).tokens == tokens[: tokens.index(tokens[1])]
        print(engine.device.library_path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "mimo_tiny")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.package, options.checkpoint)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        package = options.package
        if package is None:
            from tilecc.emit.compiler import compile_model

            package = Path(folder) / "mimo_tiny-sm_90a"
            compile_model(ROOT / "models" / "mimo_tiny.py", target="sm_90a", out=package, max_context=128)
        files = measure(package, options.checkpoint)
    print(table(files))
    wrong = problems(files, reasons())
    print("\n".join(wrong) or "every line is reached, or listed with its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

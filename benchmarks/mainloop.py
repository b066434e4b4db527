"""Main loops: speed on a GPU with correctness beside it; without one, what emulator and machine code say.

    python benchmarks/mainloop.py                       here: a GPU if there is one, else emulator and SASS
    python benchmarks/mainloop.py --prepare DIR         build everything here (nvcc, no GPU), to run elsewhere
    python DIR/mainloop_run.py DIR --out OUT            there: numpy and torch, nothing of tilecc
    python benchmarks/mainloop.py --run DIR --out OUT   the same from this tree

The kernels are emitted packages of one op (tilecc/emit/single.py), their loops those of every package.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, metavar="DIR")
    parser.add_argument("--run", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="OUT", help="folder for mainloop.json and mainloop.txt")
    parser.add_argument("--target", default="sm_90a", help="machine to build for (default sm_90a)")
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[8], help="rows of a step to count code for: 8 16 32 64"
    )
    parser.add_argument("--emulator", action="store_true", help="emulator and SASS, even where a GPU is")
    options = parser.parse_args()
    if options.prepare is not None:
        from mainloop_cases import prepare_all

        prepare_all(options.prepare, options.target, options.only)
        size = sum(f.stat().st_size for f in options.prepare.rglob("*") if f.is_file())
        print(f"{options.prepare}: {size / 1e6:.0f} MB; on the GPU's machine:")
        print(f"    python {options.prepare}/mainloop_run.py {options.prepare} --out OUT")
        return 0
    if options.run is not None:
        return run(options.run, options)
    if not options.emulator and has_gpu():
        from mainloop_cases import prepare_all

        with tempfile.TemporaryDirectory() as folder:
            prepare_all(Path(folder), options.target, options.only)
            return run(Path(folder), options)
    from mainloop_offline import report

    return report(options.target, options.only, options.out, options.rows)


def run(folder: Path, options: argparse.Namespace) -> int:
    command = [sys.executable, str(folder / "mainloop_run.py"), str(folder)]
    command += ["--out", str(options.out)] if options.out else []
    command += ["--only", *options.only] if options.only else []
    return subprocess.run(command).returncode


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    sys.exit(main())

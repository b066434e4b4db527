"""The conformance suite on a GPU.

    python -m tests.conformance.gpu --out DIR                build with nvcc, run, write conformance.{json,md}
    python -m tests.conformance.gpu --build-only -o LIB      build alone, on any machine with nvcc
    python -m tests.conformance.gpu --library LIB --out DIR  run a library built elsewhere
    ... --sanitizer memcheck,racecheck,synccheck,initcheck   then again under compute-sanitizer
    ... --racecheck-control PROGRAM                          what racecheck makes of known hand-overs
    ... --only 'matrix.*'                                    some cases

Run it in the root of the tree, on Python 3.11 or newer with numpy and ml_dtypes; nothing else of tilecc is
needed. Cases run in a worker process, which is started again after one that broke the CUDA context or did not
end. The exit status is 1 when a case failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.case import THREADS, Case, Launch, Verdict, pack_params
from tests.conformance.registry import BY_NAME, CASES, KERNELS

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "templates" / "include"
HOST = ROOT / "templates" / "host"
HOPPER_ONLY = {"wgmma"}
ELECTED = {"sync", "copy", "tma", "cluster", "wgmma"}
"""Kernels that hand over by mbarriers on which one lane arrives for its warp."""
CASE_SECONDS = 30.0
"""A case that says nothing for this long is killed (the first one pays for the CUDA context too)."""


# ---- build ---------------------------------------


def build(output: Path, arches: list[str], nvcc: str = "nvcc") -> None:
    """Compile all kernels and the launcher into one library. Raises RuntimeError with nvcc's output."""
    kernels = [k for k in THREADS if k not in HOPPER_ONLY or "90a" in arches]
    common = ["-std=c++17", "-O2", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    with tempfile.TemporaryDirectory() as work:
        table = Path(work) / "kernels.inc"
        table.write_text("".join(f"KERNEL({name})\n" for name in kernels))

        def compile_one(source: Path) -> Path:
            target = Path(work) / f"{source.stem}.o"
            # wgmma exists on Hopper alone: elsewhere its kernel is left out.
            chosen = [a for a in arches if a == "90a"] if source.stem in HOPPER_ONLY else arches
            generate = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in chosen]
            language = ["-x", "cu", *generate] if source.suffix == ".cu" else []
            _run(
                [
                    nvcc,
                    *common,
                    *language,
                    f"-I{INCLUDE}",
                    f"-I{HOST}",
                    f"-I{work}",
                    "-c",
                    str(source),
                    "-o",
                    str(target),
                ]
            )
            return target

        sources = [*(KERNELS / f"{name}.cu" for name in kernels), KERNELS / "launch.cc"]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
            objects = list(pool.map(compile_one, sources))
        partial = Path(work) / "lib.so"
        _run(
            [
                nvcc,
                "-shared",
                "-cudart",
                "static",
                "-Xlinker",
                "--exclude-libs,ALL",
                *map(str, objects),
                "-o",
                str(partial),
            ]
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(partial, output.with_suffix(".partial"))
        os.replace(output.with_suffix(".partial"), output)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")


# ---- one case ---------------------------------------


class Device:
    """The library on the current GPU. Raises RuntimeError with CUDA's message when a call fails."""

    NAMES = ("in", "out", "work", "status")

    def __init__(self, library: Path) -> None:
        self._lib = ctypes.CDLL(str(library.resolve()))
        self._lib.conformance_message.restype = ctypes.c_char_p
        u32, u64, text, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p
        self._lib.conformance_buffer.argtypes = [ctypes.c_int, u64, ctypes.POINTER(u64)]
        self._lib.conformance_upload.argtypes = [ctypes.c_int, pointer, u64]
        self._lib.conformance_download.argtypes = [ctypes.c_int, pointer, u64]
        self._lib.conformance_launch.argtypes = [text, text, u32, u32, u32, u32]

    def _call(self, name: str, *args: Any) -> None:
        if getattr(self._lib, name)(*args):
            raise RuntimeError(self._lib.conformance_message().decode())

    def describe(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("conformance_device", text, 256)
        return text.value.decode()

    def run(self, case: Case, launch: Launch) -> Verdict:
        work = launch.work if launch.work is not None else np.zeros(16, np.uint8)
        addresses: dict[str, int] = {}
        for i, nbytes in enumerate((launch.inp.nbytes, launch.out_bytes, work.nbytes, 256)):
            address = ctypes.c_uint64()
            self._call("conformance_buffer", i, max(nbytes, 16), ctypes.byref(address))
            addresses[self.NAMES[i]] = address.value
        zero = np.zeros(256, np.uint8)
        for i, data in ((0, launch.inp), (2, work), (3, zero)):
            self._call("conformance_upload", i, data.ctypes.data, data.nbytes)
        maps = []
        for m in launch.maps:
            encoded = ctypes.create_string_buffer(128)
            self._call("conformance_encode_map", ctypes.byref(m.spec(addresses[m.buffer])), encoded)
            maps.append(encoded.raw)
        params = pack_params(launch, addresses, maps)
        grid = launch.gpu_grid or launch.grid
        self._call(
            "conformance_launch",
            case.kernel.encode(),
            params,
            grid,
            THREADS[case.kernel],
            launch.cluster,
            launch.smem,
        )
        out, after = np.empty(launch.out_bytes, np.uint8), np.empty(work.nbytes, np.uint8)
        self._call("conformance_download", 1, out.ctypes.data, out.nbytes)
        self._call("conformance_download", 2, after.ctypes.data, after.nbytes)
        return launch.check(out, after)


def worker(library: Path, names: list[str]) -> int:
    """Runs cases, one JSON line each on stdout; ends after a case that raised: its context may be lost."""
    device = Device(library)
    print(json.dumps({"device": device.describe()}), flush=True)
    for name in names:
        case = BY_NAME[name]
        began = time.perf_counter()
        try:
            verdict = device.run(case, case.make())
        except RuntimeError as problem:
            print(
                json.dumps({"name": name, "verdict": asdict(Verdict(False, "runs", str(problem)))}),
                flush=True,
            )
            return 3
        seconds = time.perf_counter() - began
        print(
            json.dumps({"name": name, "verdict": asdict(verdict), "seconds": round(seconds, 4)}), flush=True
        )
    return 0


# ---- the suite ---------------------------------------


@dataclass
class Report:
    """What one pass over the cases gave. ``sanitizer``: tool name, empty without one."""

    device: str = ""
    sanitizer: str = ""
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    log: str = ""
    note: str = ""

    def ok(self) -> bool:
        return all(v["ok"] for v in self.verdicts.values())

    def primitives(self) -> dict[str, list[str]]:
        """primitive -> names of the cases that judge it and ran."""
        table: dict[str, list[str]] = {}
        for name in self.verdicts:
            for primitive in BY_NAME[name].primitives:
                table.setdefault(primitive, []).append(name)
        return table


def run_suite(
    library: Path, names: list[str], sanitizer: str = "", tool_path: str = "compute-sanitizer"
) -> Report:
    report = Report(sanitizer=sanitizer)
    began = time.perf_counter()
    left = list(names)
    while left:
        command = [
            sys.executable,
            "-m",
            "tests.conformance.gpu",
            "--worker",
            "--library",
            str(library),
            *left,
        ]
        if sanitizer:
            command = [
                tool_path,
                "--tool",
                sanitizer,
                "--error-exitcode",
                "9",
                "--print-limit",
                "20",
                *command,
            ]
        done = _collect(command, report, CASE_SECONDS * (8 if sanitizer else 1))
        if not report.device:
            raise RuntimeError(f"no GPU to run on: {report.log[-2000:]}")
        after = [n for n in left if n not in report.verdicts]
        if sanitizer and done == 9:
            report.verdicts.setdefault(left[0], asdict(Verdict(True, sanitizer)))
            report.verdicts[left[0]] |= {"ok": False, "detail": f"{sanitizer} reported errors, see the log"}
        if len(after) == len(left):  # not even one: the worker itself is broken, or this case hangs
            report.verdicts[left[0]] = asdict(
                Verdict(False, "runs", f"no answer (exit status {done}): {report.log[-600:]}")
            )
            after = after[1:]
        left = after
    report.seconds = time.perf_counter() - began
    return report


def _collect(command: list[str], report: Report, patience: float) -> int:
    """Read the worker's lines; kill it when it says nothing for ``patience`` seconds."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines: queue.Queue[str | None] = queue.Queue()
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            process.kill()
            report.log += f"killed after {patience} s without a word\n"
            return -9
        if line is None:
            return process.wait()
        try:
            message = json.loads(line)
        except ValueError:
            report.log += line
            continue
        if "device" in message:
            report.device = message["device"]
        else:
            report.verdicts[message["name"]] = message["verdict"]


@dataclass
class Control:
    """Hazards that racecheck reports in hand-overs that are known: through an mbarrier on which every lane
    arrives, on which one elected lane arrives for its warp, and without waiting (racecheck.cu)."""

    every: int
    elected: int
    none: int

    def blind(self) -> bool:
        """racecheck finds the race, but takes an elected arrival for no order at all."""
        return self.every == 0 and self.elected > 0 and self.none > 0

    def __str__(self) -> str:
        return (
            f"hazards of a hand-over by mbarrier: {self.every} with every lane arriving, {self.elected} with"
            f" an elected lane (both are right), {self.none} without a wait (a race)"
        )


def run_control(program: Path, tool_path: str) -> Control:
    """Raises RuntimeError when racecheck gave no summary."""
    found = []
    for mode in ("every", "elected", "none"):
        command = [tool_path, "--tool", "racecheck", str(program.resolve()), mode]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        summary = re.search(r"RACECHECK SUMMARY: (\d+) hazard", done.stdout)
        if summary is None:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
        found.append(int(summary.group(1)))
    return Control(*found)


def build_control(output: Path, arch: str, nvcc: str) -> None:
    generate = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    source = ROOT / "tests" / "conformance" / "racecheck.cu"
    _run([nvcc, "-std=c++17", "-O2", "-lineinfo", generate, str(source), "-o", str(output)])


def excuse(report: Report, control: Control) -> None:
    """Where racecheck is blind for elected arrivals, its hazards in kernels that use them judge nothing."""
    report.note = str(control)
    if not control.blind():
        return
    report.note += (
        ". Kernels whose warps arrive on mbarriers by an elected lane are therefore not judged here:"
    )
    report.note += " the emulator's race detector is"
    for name, verdict in report.verdicts.items():
        if not verdict["ok"] and BY_NAME[name].kernel in ELECTED:
            verdict |= {"ok": True, "detail": "not judged"}


def sanitize(library: Path, names: list[str], tool: str, tool_path: str) -> Report:
    """One pass per kernel file, so that an error names its family."""
    total, details = Report(sanitizer=tool), ""
    for kernel in dict.fromkeys(BY_NAME[n].kernel for n in names):
        part = run_suite(library, [n for n in names if BY_NAME[n].kernel == kernel], tool, tool_path)
        total.device = part.device or total.device
        total.verdicts |= part.verdicts
        total.seconds += part.seconds
        summary = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", part.log)
        total.log += f"--- {kernel}: {'; '.join(summary)}\n"
        if not part.ok() or any(not s.split("SUMMARY: ")[1].startswith("0 ") for s in summary):
            details += part.log
    total.log += details
    return total


def markdown(reports: list[Report], when: str) -> str:
    """A verdict per primitive, then every case, then the sanitizers."""
    main = reports[0]
    failed = [n for n, v in main.verdicts.items() if not v["ok"]]
    lines = [
        "# Conformance of the device primitives",
        "",
        f"{when}, {main.device}, {main.seconds:.1f} s.",
        "",
    ]
    lines += [
        f"{len(main.verdicts) - len(failed)} of {len(main.verdicts)} cases pass.",
        "",
        "## Primitives",
        "",
    ]
    lines += ["| primitive | verdict | rule | cases |", "|---|---|---|---|"]
    for primitive, cases in sorted(main.primitives().items()):
        ok = all(main.verdicts[c]["ok"] for c in cases)
        rules = "; ".join(dict.fromkeys(main.verdicts[c]["rule"] for c in cases))
        lines.append(f"| `{primitive}` | {'pass' if ok else '**differs**'} | {rules} | {', '.join(cases)} |")
    lines += ["", "## Cases", "", "| case | verdict | found |", "|---|---|---|"]
    for name, v in main.verdicts.items():
        lines.append(
            f"| {name} | {'pass' if v['ok'] else '**differs**'} | {v['detail'].replace('|', '/')[:400]} |"
        )
    for report in reports[1:]:
        state = "errors" if not report.ok() else "judged in part" if report.note else "clean"
        lines += ["", f"## compute-sanitizer {report.sanitizer}: {state}, {report.seconds:.1f} s", ""]
        lines += [f"{report.note}.", ""] if report.note else []
        lines += ["```"]
        lines += [report.log.strip()[:6000], "```"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="directory for conformance.json and conformance.md")
    parser.add_argument("--library", type=Path, help="a library built before")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/libconformance.so"))
    parser.add_argument("--arch", default="90a", help="architectures of the build, for example 90a,100a")
    parser.add_argument("--nvcc", default=os.environ.get("TILECC_NVCC", "nvcc"))
    parser.add_argument("--only", default="*", help="pattern of case names")
    parser.add_argument("--sanitizer", default="", help="tools of compute-sanitizer, separated by commas")
    parser.add_argument("--sanitizer-path", default="compute-sanitizer")
    parser.add_argument("--racecheck-control", type=Path, metavar="PROGRAM")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return worker(options.library, options.names)
    library = options.library
    if library is None:
        began = time.perf_counter()
        build(options.output, options.arch.split(","), options.nvcc)
        if options.racecheck_control:
            build_control(options.racecheck_control, options.arch.split(",")[0], options.nvcc)
        library = options.output
        print(f"built {library} in {time.perf_counter() - began:.1f} s", flush=True)
    if options.build_only:
        return 0
    arch = options.arch.split(",")[0]
    names = [c.name for c in CASES if fnmatch.fnmatch(c.name, options.only) and arch in c.arches]
    try:
        reports = [run_suite(library, names)]
    except RuntimeError as problem:
        print(problem, file=sys.stderr)
        return 2
    for tool in filter(None, options.sanitizer.split(",")):
        reports.append(sanitize(library, names, tool, options.sanitizer_path))
        if tool == "racecheck" and options.racecheck_control:
            excuse(reports[-1], run_control(options.racecheck_control, options.sanitizer_path))
    text = markdown(reports, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = [{k: v for k, v in asdict(r).items()} for r in reports]
        for name, content in (("conformance.json", json.dumps(record, indent=1)), ("conformance.md", text)):
            (options.out / f"{name}.partial").write_text(content)
            os.replace(options.out / f"{name}.partial", options.out / name)
    print(text)
    return 0 if all(r.ok() for r in reports) else 1


if __name__ == "__main__":
    sys.exit(main())

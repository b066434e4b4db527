"""Times prepared main loops on a GPU: `python mainloop_run.py DIR --out OUT`. Needs numpy and torch alone.

DIR is what `benchmarks/mainloop.py --prepare DIR` wrote; this file is copied there with the two modules that
it imports. Per case: the result of one step is compared with float64, then launches of many steps are timed
with CUDA events; the result after the timed launches must have the bits of the checked one. A speed without a
passed check is not printed. Bandwidth counts weight bytes alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from abi import STATUS_WORDS, Params, step_type
from fragments import ACT_FACTOR, from_fragments

REPEATS = 15
COPY_BYTES = 1 << 30
NOMINAL = {"H200": 4.8e12, "H100": 3.35e12, "B200": 8.0e12}


class LaunchArguments(ctypes.Structure):
    """struct tilecc_launch of templates/host/tilecc.h."""

    _fields_ = (("size", ctypes.c_uint32), ("grid", ctypes.c_uint32), ("params", Params))


class Prepared:
    """One case on the GPU: library, weights, inputs."""

    def __init__(self, folder: Path, case: dict[str, Any]) -> None:
        self.folder, self.case = folder / case["name"], case
        library = ctypes.CDLL(str((self.folder / "kernel.so").resolve()))
        self.launch_function = getattr(library, f"tilecc_{case['symbol']}_launch")
        self.launch_function.argtypes = [ctypes.POINTER(LaunchArguments), ctypes.c_void_p]
        self.last_error = getattr(library, f"tilecc_{case['symbol']}_last_error")
        self.last_error.restype = ctypes.c_char_p
        self.image = torch.zeros(case["image_bytes"], dtype=torch.uint8, device="cuda")
        fill_image(self.image, self.folder, case)
        self.tables = self.bytes(np.fromfile(self.folder / "tables.bin", np.uint8))
        table = np.load(self.folder / "steps.npy")
        self.steps = self.bytes(table.view(np.uint8).reshape(-1))
        assert self.steps.numel() == case["steps"] * step_type().itemsize
        self.tokens = torch.zeros(case["steps"] * 8, dtype=torch.int32, device="cuda")
        self.kv = torch.zeros(max(case["kv_bytes"], 16), dtype=torch.uint8, device="cuda")
        self.stop = torch.zeros(16, dtype=torch.uint8, device="cuda")
        self.status = torch.zeros(STATUS_WORDS, dtype=torch.int32).pin_memory()
        self.workspace = self.bytes(first_workspace(self.folder, case))
        self.logits = torch.zeros(8 * case["vocab"], dtype=torch.float32, device="cuda")

    @staticmethod
    def bytes(data: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(data)).cuda()

    def launch(self, steps: int, logits: bool = False) -> None:
        """Launch `steps` steps on the current stream; asynchronous."""
        params = Params(
            image=self.image.data_ptr(), tables=self.tables.data_ptr(), kv=self.kv.data_ptr(),
            workspace=self.workspace.data_ptr(), steps=self.steps.data_ptr(),
            tokens_out=self.tokens.data_ptr(),
            logits=self.logits.data_ptr() if logits else None, stop_ids=self.stop.data_ptr(),
            status=self.status.data_ptr(), n_steps=steps, n_stop=0, flags=0,
        )  # fmt: skip
        arguments = LaunchArguments(ctypes.sizeof(LaunchArguments), 0, params)
        code = self.launch_function(ctypes.byref(arguments), torch.cuda.current_stream().cuda_stream)
        if code != 0:
            raise RuntimeError(f"{self.case['name']}: launch refused: {(self.last_error() or b'').decode()}")

    def finish(self) -> None:
        """Wait, and show the watchdog's record if the kernel stopped."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            print(f"{self.case['name']}: status record {self.status.tolist()}", file=sys.stderr)
            raise

    def result(self) -> np.ndarray:
        """What the last layer left: float32 [8, columns]."""
        if self.case["kind"] != "head":
            return read_result(self.case, self.workspace.cpu().numpy())
        self.logits.zero_()
        self.launch(1, logits=True)
        self.finish()
        return self.logits.cpu().numpy().reshape(8, -1)


def fill_image(image: torch.Tensor, folder: Path, case: dict[str, Any]) -> None:
    """Write vectors and repeated weight tiles into the image, on its device."""
    for part in case["image"]:
        data = torch.from_numpy(np.load(folder / part["file"])).to(image.device)
        if "tiles" in part:
            index = (torch.arange(part["tiles"], device=image.device) + part["shift"]) % len(data)
            data = data[index].reshape(-1)
        image[part["offset"] : part["offset"] + part["nbytes"]] = data


def first_workspace(folder: Path, case: dict[str, Any]) -> np.ndarray:
    """The workspace before the first launch: zeros and the op's inputs."""
    space = np.zeros(case["workspace_bytes"], np.uint8)
    for region in case["regions"]:
        raw = np.load(folder / region["file"])
        space[region["offset"] : region["offset"] + raw.size] = raw
    return space


def read_result(case: dict[str, Any], workspace: np.ndarray) -> np.ndarray:
    """The op's result in the workspace: float32 [8, columns]."""
    region = {"gate_up": "hidden", "router": "router_logits"}.get(case["kind"], "partials")
    offset, nbytes = case["places"][region]
    raw = workspace[offset : offset + nbytes]
    if case["kind"] == "router":
        return raw.view(np.float32).reshape(8, -1)[:, : case["rows"]].copy()
    if case["kind"] == "gate_up":
        wide = raw.view(np.uint16).astype(np.uint32) << 16
        return from_fragments(wide.view(np.float32), case["rows"] // 2) / np.float32(ACT_FACTOR)
    columns = case["cols"] if case["kind"] == "experts" else case["rows"]
    flat = raw.view(np.float32)[: case["splits"] * -(-columns // 128) * 128 * 8]
    parts = from_fragments(flat.reshape(case["splits"], -1), columns)
    return parts.astype(np.float64).sum(axis=0).astype(np.float32)


def check(folder: Path, case: dict[str, Any], got: np.ndarray) -> tuple[bool, float]:
    """(within the bound everywhere, largest error / bound) against the float64 reference."""
    want, bound = np.load(folder / "want.npy"), np.load(folder / "bound.npy")
    if want.ndim == 3:
        each = want.shape[2]
        tiles = (np.arange(got.shape[1] // each) + case["shift"]) % want.shape[1]
        want, bound = (a[:, tiles].reshape(8, -1) for a in (want, bound))
    if got.shape != want.shape:
        raise ValueError(f"{case['name']}: result {got.shape}, expected {want.shape}")
    worst = float((np.abs(got - want) / bound).max())
    return bool(np.isfinite(got).all()) and worst <= 1.0, worst


def timed(launch: Any, repeats: int) -> list[float]:
    """Seconds of each of `repeats` launches, by CUDA events, after two that are not counted."""
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    launch()
    launch()
    for began, ended in events:
        began.record()
        launch()
        ended.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) / 1e3 for began, ended in events]


def measure_copy() -> list[float]:
    """Bytes per second, read and written together, of device-to-device copies of 1 GiB."""
    a = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    b = torch.ones_like(a)
    return [2 * COPY_BYTES / s for s in timed(lambda: a.copy_(b), REPEATS)]


def run_case(folder: Path, case: dict[str, Any], copy_rate: float) -> dict[str, Any]:
    """Check and time one case."""
    prepared = Prepared(folder, case)
    prepared.launch(1)
    prepared.finish()
    first = prepared.result()
    passed, worst = check(prepared.folder, case, first)
    found: dict[str, Any] = {"name": case["name"], "what": case["what"]}
    found |= {"passed": passed, "error_of_bound": worst}
    if not passed:
        return found
    seconds = timed(lambda: prepared.launch(case["steps"]), REPEATS)
    prepared.finish()
    same = bool((prepared.result() == first).all())
    rates = sorted(case["steps"] * case["weight_bytes"] / s for s in seconds)
    middle = statistics.median(rates)
    found |= {
        "same_bits_after": same, "weight_bytes": case["weight_bytes"], "steps": case["steps"],
        "bytes_per_second": middle, "slowest": rates[0], "fastest": rates[-1],
        "share_of_copy": middle / copy_rate,
        "microseconds_per_step": 1e6 * case["weight_bytes"] / middle, "modelled": case["modelled"],
    }  # fmt: skip
    found["passed"] = passed and same
    return found


def line(found: dict[str, Any], nominal: float | None) -> str:
    if not found["passed"]:
        return f"{found['name']:12} WRONG: error {found['error_of_bound']:.3g} of the bound, no speed"
    bytes_per_second = found["bytes_per_second"]
    spread = f"{found['slowest'] / 1e9:.0f}..{found['fastest'] / 1e9:.0f}"
    share = f"{100 * bytes_per_second / nominal:3.0f} % of nominal, " if nominal else ""
    models = "; ".join(
        f"{m['op']} {m['instructions_per_weight']:.2f} instr/weight, modelled {100 * m['share']:.0f} %"
        f" ({m['bound']}), with stalls {100 * m['share_with_stalls']:.0f} %"
        for m in found["modelled"]
    )
    return (
        f"{found['name']:12} ok  {bytes_per_second / 1e9:6.0f} GB/s ({spread}), {share}"
        f"{100 * found['share_of_copy']:3.0f} % of copy, {found['microseconds_per_step']:7.1f} us/step,"
        f" {found['weight_bytes'] / 1e6:.0f} MB | {models} | {found['what']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what --prepare wrote")
    parser.add_argument("--out", type=Path, help="folder for mainloop.json and mainloop.txt")
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no usable CUDA device", file=sys.stderr)
        return 5
    began = time.time()
    device = torch.cuda.get_device_name()
    nominal = next((rate for name, rate in NOMINAL.items() if name in device), None)
    copies = measure_copy()
    copy_rate = statistics.median(copies)
    head = (
        f"{device}, torch {torch.__version__}; device copy {copy_rate / 1e9:.0f} GB/s"
        f" ({min(copies) / 1e9:.0f}..{max(copies) / 1e9:.0f}), read and written; median of {REPEATS} launches"
    )
    lines, results = [head], []
    print(head, flush=True)
    for case in json.loads((options.folder / "cases.json").read_text()):
        if options.only and case["name"] not in options.only:
            continue
        try:
            found = run_case(options.folder, case, copy_rate)
        except (RuntimeError, OSError, ValueError) as reason:
            # A kernel that trapped has taken the context with it.
            lines.append(f"{case['name']:12} FAILED: {str(reason).splitlines()[0]}")
            print(lines[-1], flush=True)
            results.append({"name": case["name"], "passed": False, "failed": str(reason)})
            if "launch refused" not in str(reason):
                break
            continue
        results.append(found)
        lines.append(line(found, nominal))
        print(lines[-1], flush=True)
        torch.cuda.empty_cache()
    report = {
        "device": device,
        "copy_bytes_per_second": copies,
        "seconds": time.time() - began,
        "cases": results,
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mainloop.json").write_text(json.dumps(report, indent=1))
        (options.out / "mainloop.txt").write_text("\n".join(lines) + "\n")
    return 0 if results and all(r["passed"] for r in results) else 4


if __name__ == "__main__":
    sys.exit(main())

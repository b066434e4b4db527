"""Checker against emulator: random mutations of good programs, what the checker says of each and what the
emulator finds.

    python -m benchmarks.differential --mutants 5000 [--net NAME ...] [--seed 1] [--out FILE]

Every mutant that the checker accepts runs under ten seeds with all detectors; one that it refuses, under two,
for the figures alone. Exit status 1 if the emulator found something that the checker accepts, or if the
checker refuses a mutant that is harmless by construction.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.check.bench import NETS, build
from tests.check.differential import Table, judge, mutants_of
from tests.check.mutants import KINDS

ACCEPTED, REFUSED = range(10), range(2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--net", choices=list(NETS), action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON line per mutant")
    args = parser.parse_args()
    nets = args.net or list(NETS)
    table, began = Table(), time.process_time()
    wrong = 0
    for name in nets:
        with tempfile.TemporaryDirectory() as folder:
            bench = build(Path(folder), NETS[name], [kind.text for kind in KINDS])
            chosen = mutants_of(bench)
            random.Random(args.seed).shuffle(chosen)
            chosen = chosen[: -(-args.mutants // len(nets))]
            for mutant in chosen:
                verdict = judge(bench, mutant, ACCEPTED, REFUSED)
                table.verdicts.append(verdict)
                if verdict.missed or verdict.wrong_alarm:
                    wrong += 1
                    print(f"{name}: {mutant.name}: {verdict.refused or 'accepted'} {verdict.message}"
                          f" {verdict.found or ''}", flush=True)  # fmt: skip
                if args.out is not None:
                    line = [name, mutant.name, mutant.harmless, verdict.refused, verdict.found, verdict.runs]
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
        print(f"{name}: {len(chosen)} mutants", flush=True)
    print("\n".join(table.lines()))
    print(f"{time.process_time() - began:.0f} s of CPU time, grid 3")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

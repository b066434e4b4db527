"""`tilecc emulate`: a campaign over seeds, what it prints, its exit codes, and that it can be repeated."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tilecc.runtime.campaign import Campaign, Group, Plan, Run, class_of, parse_choices, parse_detectors
from tilecc.runtime.devices.emu_lib import DETECT_ALL, DETECT_RACES, Finding, Place

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"
SHORT = ("--checkpoint", CHECKPOINT, "--ids", "5,9", "--max-tokens", 1, "--grid", 2)

RELEASE = """\
        tk::syncwarp();
        tk::mbar_arrive(c.w_empty(c.w.slot));
"""


def edited(package: Path, folder: Path, old: str, new: str, file: str = "include/op_gemv.cuh") -> Path:
    """A copy of a package with one edit of its text."""
    out = folder / "edited"
    shutil.copytree(package, out)
    text = (out / file).read_text()
    assert text.count(old) == 1
    (out / file).write_text(text.replace(old, new))
    return out


def test_clean_campaign(cli: Any, tiny_package: Path) -> None:
    shown = cli("emulate", tiny_package, *SHORT, "--seeds", 3, "--first-seed", 4, "--json")
    assert shown.code == 0, shown.err
    facts = json.loads(shown.out)
    assert (facts["runs"], facts["clean"], facts["deadlocks"]) == (3, 3, 0)
    assert facts["findings"] == [] and facts["reproduce"] is None
    assert facts["tokens_equal"] and facts["answers"][0]["seeds"] == [4, 5, 6]
    assert facts["detect"] == ["races", "uninit", "parity", "banks"]
    assert set(facts["stats"]["roles"]) == {"loader", "store", "activations", "consumer"}
    for name in ("mma", "bulk_load_bytes", "lds_bytes"):
        roles = facts["stats"]["roles"].values()
        assert facts["stats"]["total"][name] == sum(r.get(name, 0) for r in roles) > 0
    assert "nothing found" in shown.err and "Traceback" not in shown.err


def test_race_is_reported_with_both_places_and_repeated_by_its_command(
    cli: Any, tiny_package: Path, tmp_path: Path
) -> None:
    package = edited(tiny_package, tmp_path, RELEASE, RELEASE.replace("        tk::syncwarp();\n", ""))
    text = (package / "include" / "op_gemv.cuh").read_text().splitlines()
    shown = cli("emulate", package, *SHORT, "--seeds", 2, "--schedule", "random", "--landing", "last")
    assert shown.code == 1, shown.err
    assert "error[TC0912]: cta " in shown.out and "in 2 of 2 runs: seeds 0, 1" in shown.out
    # rustc's form: place, bar, the line itself with its number.
    for line, source in enumerate(text, 1):
        if "tk::bulk_g2s(" in source:
            if f"{package}/include/op_gemv.cuh:{line}:" in shown.out:
                assert f"{line} | {source}" in shown.out
                break
    else:
        pytest.fail(f"no copy is named as one side of the race:\n{shown.out}")

    again = shown.out.split("the first bad run again:\n")[1].strip()
    command = shlex.split(again)
    assert command[:2] == ["tilecc", "emulate"]
    first, second = (cli(*command[1:], "--json") for _ in range(2))
    assert first.code == second.code == 1
    runs = [json.loads(one.out) for one in (first, second)]
    for one in runs:
        one.pop("cpu_seconds"), one.pop("build_seconds")
    assert runs[0] == runs[1]
    found = runs[0]["findings"][0]
    assert found["code"] == "TC0912" and found["class"] == "data race" and found["seeds"] == [0]
    assert len(found["spans"]) == 2 and all(s["line"] for s in found["spans"])


def test_deadlock(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    package = edited(
        tiny_package,
        tmp_path,
        RELEASE,
        RELEASE.replace("        tk::mbar_arrive(c.w_empty(c.w.slot));\n", ""),
    )
    shown = cli("emulate", package, *SHORT, "--seeds", 1, "--detect", "none", "--json")
    assert shown.code == 1, shown.err
    facts = json.loads(shown.out)
    assert facts["deadlocks"] == 1 and facts["answers"] == []
    (found,) = facts["findings"]
    assert found["code"] == "TC0901" and any(
        "mbar_wait on weights empty[" in s["label"] for s in found["spans"]
    )


def test_bad_choices(cli: Any, tiny_package: Path) -> None:
    for option, value, hint in (
        ("--schedule", "rando", "did you mean `random`?"),
        ("--landing", "lastt", "did you mean `last`?"),
        ("--detect", "races,unint", "did you mean `uninit`?"),
    ):
        shown = cli("emulate", tiny_package, "--checkpoint", CHECKPOINT, option, value)
        assert shown.code == 2 and "error[TC0703]" in shown.err and hint in shown.err and shown.out == ""
    both = cli("emulate", tiny_package, "--checkpoint", CHECKPOINT, "--ids", "1", "--prompt", "x")
    assert both.code == 2 and "both `--prompt` and `--ids`" in both.err
    long = cli("emulate", tiny_package, "--checkpoint", CHECKPOINT, "--max-tokens", 500)
    assert long.code == 1 and "error[TC0401]" in long.err and long.out == ""


def test_plan_deals_out_all_combinations() -> None:
    plan = Plan(range(40, 49))
    assert {(s.schedule, s.landing) for s in map(plan.setting, plan.seeds)} == {
        (schedule, landing)
        for schedule in ("round_robin", "random", "pct")
        for landing in ("at_once", "random", "last")
    }
    assert plan.setting(44) == Plan(range(44, 45)).setting(44)
    assert {plan.setting(s).preempt for s in plan.seeds} == {0, 10}
    assert plan.detectors == ["races", "uninit", "parity", "banks"] and plan.detect == DETECT_ALL
    assert parse_detectors("races") == DETECT_RACES and parse_detectors("none") == 0
    assert parse_choices("a,c", ("a", "b", "c"), "--x") == ("a", "c")


def test_findings_are_grouped_by_class_and_lines() -> None:
    def race(a: int, b: int) -> Finding:
        return Finding("TC0912", "m", f"k.cu:{a}:1", (), (Place("k.cu", b, 2, "the other"),))

    plan = Plan(range(4), ("random",), ("last",))
    campaign = Campaign(plan)
    found = [(race(1, 2), race(3, 4)), (), (race(2, 1), race(2, 1)), (Finding("TC0901", "m", "", ()),)]
    for seed, findings in enumerate(found):
        campaign.add(Run(plan.setting(seed), findings, None if findings else (7,), 0.5))
    assert [(class_of(g.finding)[0], [s.seed for s in g.settings]) for g in campaign.groups] == [
        ("TC0912", [0, 2]),
        ("TC0912", [0]),
        ("TC0901", [3]),
    ]
    assert isinstance(campaign.groups[0], Group)
    assert (campaign.clean, campaign.deadlocks, campaign.tokens_equal, campaign.ok) == (1, 1, True, False)
    assert campaign.first_bad == plan.setting(0) and campaign.cpu_seconds == 2.0

    split = Campaign(plan)
    for seed, token in enumerate((7, 7, 8, 7)):
        split.add(Run(plan.setting(seed), (), (token,), 0.0))
    assert not split.ok and split.first_bad == plan.setting(2)

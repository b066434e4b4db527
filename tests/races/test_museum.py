"""Every exhibit is refused with its diagnosis."""

from __future__ import annotations

import pytest

from tests.check.test_checker import small
from tests.passes.helpers import Net
from tests.passes.helpers import lower as lower_net
from tests.races.museum import MUSEUM, Exhibit, no_previous, nobody_idles
from tilecc.check.checker import CODES, diagnostics, violations
from tilecc.check.lower import lower


@pytest.mark.parametrize("exhibit", MUSEUM, ids=[e.name for e in MUSEUM])
def test_exhibit(exhibit: Exhibit) -> None:
    sync = exhibit.change(lower(small()))
    found = violations(sync)
    texts = [" ".join((v.message, *v.notes)) for v in found if v.kind == exhibit.kind]
    assert any(all(word in text for word in exhibit.words) for text in texts), found
    for diagnostic in diagnostics(sync, found):
        assert diagnostic.code in CODES.values()
    if exhibit.kind in ("race", "lap", "deadlock"):
        places = [d for d in diagnostics(sync, found) if d.code == CODES[exhibit.kind]]
        assert all(d.span is not None and d.span.file for d in places)


def test_an_idle_cta_that_signals_at_once_is_a_lap_ahead() -> None:
    """Without a mixture of experts, whose routing every CTA waits for, nothing holds it back."""
    sync = lower(lower_net(Net(layers=((0, "dense"),)).graph())[1])
    assert violations(sync) == []
    found = violations(nobody_idles(sync))
    assert any(v.kind == "lap" and "stand in" in v.message for v in found), found


def test_old_keys_are_fetched_before_the_step_that_wrote_them_has_ended() -> None:
    """On a CTA whose activation warps wait for nothing else in the step."""
    sync = lower(lower_net(Net(layers=((8, "dense"),)).graph())[1])
    found = [v for v in violations(no_previous(sync)) if v.kind == "race"]
    assert any("reads `kv.0`" in v.message and "of the step before" in v.message for v in found), found


def test_the_museum_shows_every_kind() -> None:
    assert {e.kind for e in MUSEUM} == set(CODES) - {"script", "budget", "lap"}
    assert CODES == {
        "deadlock": "TC0801",
        "race": "TC0802",
        "lap": "TC0803",
        "arrivals": "TC0804",
        "ring": "TC0805",
        "wait": "TC0806",
        "counter": "TC0806",
        "script": "TC0807",
        "budget": "TC0808",
    }

"""The type of a catalogue entry, apart from the catalogue so that the ``codes_*`` files can import it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What ``tilecc explain CODE`` prints.

    ``title`` is one line; ``explanation`` says why the rule exists and what to do, in a few sentences;
    ``wrong`` and ``right`` are short inputs (a model file, a command line, a config) before and after.
    ``exit_code`` is what the command line returns when this is the worst finding.
    """

    title: str
    explanation: str
    wrong: str
    right: str
    exit_code: int = 1

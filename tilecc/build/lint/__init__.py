"""Lint of emitted CUDA text: the ten rules that make what the emulator passes meaningful on a GPU."""

from tilecc.build.lint.check import RULES, check_edited, lint_package, lint_texts, package_texts

__all__ = ["RULES", "check_edited", "lint_package", "lint_texts", "package_texts"]

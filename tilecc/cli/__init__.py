"""The command line. One module per command; whatever is heavy to import is imported inside functions.

stdout carries data (text that was asked for, or JSON with ``--json``), stderr carries prose and progress.
"""

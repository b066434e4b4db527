"""Conformance of the device primitives: the same kernels with the same inputs on the emulator and on a GPU.

``registry.CASES`` lists the cases. ``test_emulated.py`` runs them in the emulator,
``python -m tests.conformance.gpu`` on a GPU. Everything but ``emulate.py`` and the tests needs the
standard library, numpy and ml_dtypes alone.
"""

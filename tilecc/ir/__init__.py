"""The intermediate representations: Graph, TileGraph, Program; their text form and their verifiers.

Imports neither torch nor tvm.
"""

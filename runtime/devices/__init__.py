"""Devices that run a built package: the CPU emulator, CUDA, and the eager reference."""

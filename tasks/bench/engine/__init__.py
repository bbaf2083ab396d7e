"""Benchmarks of the engine: each compares two sides in one run, on one machine.

Searches are compared in ``tasks/bench/searches``.
"""

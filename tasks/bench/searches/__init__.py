"""Searches side by side, on one evaluator, one accounting and the same seeds; HM3's own ablations too.

The searches themselves are in ``models/agent`` and ``tasks/bench/baselines``.
"""

"""What every search shares: paths as a Markov decision process, archive, reward, and a trial that pays for scores.

Searches themselves are in ``models/agent`` and ``tasks/bench/baselines``.
"""

"""Models that are paths through layers, built in memory, and what they answer to many requests at once.

What is asked of them is in ``tasks/objectives``; which paths are tried is decided by a search.
"""

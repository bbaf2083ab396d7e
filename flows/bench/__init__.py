"""The lab as commands: `hm3 bench`, and the runs that are killed on purpose.

What is measured, and how it is read, is in ``tasks/bench``.
"""

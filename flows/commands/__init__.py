"""The commands of `hm3`: options, exit codes, and what is printed.

What a command does is in ``tasks``, or in the flows beside this package.
"""

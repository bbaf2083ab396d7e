"""Looks at parameters, models, data, memory and servers before anything is computed, and plans the run.

It mends nothing; each part checks its own input again where it reads it.
"""

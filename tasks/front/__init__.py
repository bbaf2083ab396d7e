"""The front that a run ends with: ``front.json``, tables, a member chosen by preference, its checkpoint.

Who becomes a member is decided in ``tasks/trials``; aliases are in ``tasks/registry``.
"""

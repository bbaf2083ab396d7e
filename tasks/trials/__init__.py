"""A search over a profile's models: its pool, its trial, its settings, and who becomes a member.

The search itself is in ``models/agent``; stages, which call this, read and write the files.
"""

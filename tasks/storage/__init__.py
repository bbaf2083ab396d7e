"""Files and folders in S3 buckets: sent in parts, checked by digest, brought back whole or not at all.

The journal's own segments are in ``tasks/scoring``.
"""

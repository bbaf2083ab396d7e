"""What a user starts: the `hm3` command, the pipeline as a Prefect flow, servers, calls of DVC.

What a stage computes is in ``tasks``; Prefect is imported nowhere but here.
"""

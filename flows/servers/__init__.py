"""Servers of this machine: Prefect and MLflow for `hm3 up` or for one run, and deployments.

What MLflow is told is in ``tasks/tracking`` and ``tasks/registry``.
"""

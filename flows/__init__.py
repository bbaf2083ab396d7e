"""Orchestration: the command line, the Prefect flow, local servers, calls of DVC."""

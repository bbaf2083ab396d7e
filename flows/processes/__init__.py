"""Processes that end with whoever started them, locks of the workspace, and what may be tried again.

Local servers, which outlive the command that starts them, are in ``flows/servers``.
"""

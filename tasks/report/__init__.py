"""The report: one HTML file with interactive figures of a front and its search.

Tables for the terminal are in ``tasks/front``.
"""

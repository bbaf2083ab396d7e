"""Calls of DVC: a stage reproduced, experiments, outs sent to a remote, files of a killed DVC mended.

Calls of git are in ``tasks/project``; what ``dvc.lock`` says is read in ``tasks/tracking``.
"""

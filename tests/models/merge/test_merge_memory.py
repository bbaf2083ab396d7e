"""Merging a large tensor takes a bounded number of copies of it, beside the models' own."""

import ctypes
from pathlib import Path

import pytest
import torch

from models.merge.methods import METHODS

ROWS, COLUMNS, EXPERTS = 16640, 512, 3  # more than the 32 MiB up to which glibc keeps what is freed
COPY = ROWS * COLUMNS * 4 / 2**20
"""MiB of one tensor in float32."""
MOST = 6
"""Copies that are allowed: the methods take four at most, and the process allocates other things too."""
ALIKE = {"passthrough", "dare_linear", "breadcrumbs_ties", "della_linear", "tsv_m", "wudi"}
"""What another method's code merges, or nothing."""
SETTINGS = {"weight": 0.5, "density": 0.3, "gamma": 0.01, "epsilon": 0.1, "select_topk": 0.1, "t": 0.3, "rescale": True}


@pytest.fixture(scope="module")
def models():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, COLUMNS, generator=generator)
    return [base, *(base + 0.01 * torch.randn(ROWS, COLUMNS, generator=generator) for _ in range(EXPERTS))]


def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 2**10


def merge(method, models):
    experts = models[1:][: method.max_experts]
    models = [models[0], *experts] if method.base == "required" else experts
    values = {}
    for one in method.parameters:
        value = SETTINGS.get(one.name, one.default)
        values[one.argument] = value if one.scope == "shared" else [value] * len(experts)
    if method.random:
        values["generators"] = [torch.Generator().manual_seed(seed) for seed in range(EXPERTS)]
    if method.learns:
        values["learned"] = () if method.by_matrix else [0.3] * len(experts)
    if method.by_matrix:
        values["linear_layer"] = False
    based = {"required": (models[0], models[1:]), "optional": (None, models), "ignored": (models,)}
    return method.merge(*based[method.base], **values)


@pytest.mark.parametrize("name", sorted(set(METHODS) - ALIKE))
def test_copies(name, models):
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("the system doesn't say how much memory a process used at most")
    merge(METHODS[name], [model[:64] for model in models])  # what libraries allocate once
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    reset.write_text("5")  # the highest mark becomes what is used now
    before = memory("VmRSS")
    merge(METHODS[name], models)
    copies = (memory("VmHWM") - before) / COPY
    assert 0.5 <= copies <= MOST

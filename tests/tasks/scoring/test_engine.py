"""The engine: what fits into memory is scored whatever the chunk, what never fits has failed."""

import itertools

import pytest
import torch

from models.candidate import Candidate
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import CHUNK, Engine
from tasks.scoring.journal import Journal
from tests.small_tasks import make_family_project

PATHS = [
    Candidate(host, tuple(zip(models, range(3), strict=True)))
    for host in "ab"
    for models in itertools.product("ab", repeat=3)
]
HOPELESS = PATHS[5]


@pytest.fixture(scope="module")
def root(make_family, tmp_path_factory):
    return make_family_project(tmp_path_factory.mktemp("engine"), make_family).root


@pytest.fixture
def engine(root, tmp_path):
    return Engine(open_workspace("p", root), tmp_path / "journal")


@pytest.fixture
def limited(engine, monkeypatch):
    """Sizes of the chunks that were tried on a device that holds three candidates, and never the hopeless one."""
    tried, run = [], engine.pool.run

    def limit(job, candidates, on_done):
        tried.append(len(candidates))
        if len(candidates) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if HOPELESS in candidates:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
        return run(job, candidates, on_done)

    monkeypatch.setattr(engine.pool, "run", limit)
    return tried


def test_a_chunk_that_does_not_fit_is_halved_until_it_does(engine, limited, root, tmp_path):
    found = engine.scored(PATHS, "search")
    wanted = Engine(open_workspace("p", root), tmp_path / "other").scored(PATHS, "search")
    assert limited[0] == min(CHUNK, len(PATHS)) > 3
    for path, ours, theirs in zip(PATHS, found, wanted, strict=True):
        assert (ours == theirs) == (path != HOPELESS)


def test_what_never_fits_is_journalled_as_failed_and_not_tried_again(engine, limited):
    found = engine.scored(PATHS, "search")[PATHS.index(HOPELESS)]
    assert "can't allocate memory" in found.failed
    again = Journal(engine.journal.folder)
    assert [one.failed for known in map(again.find, again.keys()) for one in known].count(None) == len(PATHS) - 1
    limited.clear()
    assert engine.scored([HOPELESS], "search")[0].failed == found.failed
    assert limited == []


def test_other_errors_are_not_taken_for_a_lack_of_memory(engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine.pool, "run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.scored(PATHS, "search")
    assert not len(engine.journal)

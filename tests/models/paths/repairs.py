"""Models with tensors changed, items to calibrate on, and paths whose seams are repaired."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

from models.candidate import Candidate
from models.paths.folded import RepairedSource
from models.paths.pool import Pool
from models.paths.prefix import Requests
from models.paths.repair import seams_of
from models.paths.vision import ImageItems, image_requests
from models.sources.architecture import with_layers
from models.sources.heads import Head
from tests.small_families import LAYERS


class Changed:
    """A model with some tensors changed."""

    def __init__(self, source, change):
        self.config, self.names, self.architecture = source.config, source.names, source.architecture
        self.tensor = lambda name: change(name, source.tensor(name).clone())


def pool_of(dtype=torch.float32, **sources):
    pool = Pool(sources["a"].config, dtype=dtype)
    for name, source in sources.items():
        pool.add(name, source)
    return pool


def random_texts(count, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 61, int(generator.integers(3, 40))).tolist() for _ in range(count)]


def random_images(count, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def requests_of(pool, items, tokens=256):
    if torch.is_tensor(items):
        head = Head(torch.ones(5, 16 if pool.architecture.classes == "texts" else 32), None)
        return image_requests(pool, [ImageItems(items, torch.zeros(len(items), dtype=torch.long), head)])
    return Requests.from_pairs([(text[:-1], text[-1:]) for text in items], 128, tokens)


def without(*layers):
    """What is left of model ``a``."""
    return Candidate("a", tuple(("a", layer) for layer in range(LAYERS) if layer not in layers))


def repaired(pool, source, candidate, folds):
    """The candidate with its seams repaired, whose models it adds to the pool."""
    path = list(candidate.path)
    for position, seam in seams_of(candidate, LAYERS).items():
        name = f"{seam.layer} to {seam.next}"
        if name not in pool:
            pool.add(name, RepairedSource(source, seam.layer, lambda seam=seam: folds[seam], name))
        path[position] = name, seam.layer
    return Candidate(candidate.host, tuple(path))


def write(pool, candidate, folder):
    """The path as one checkpoint."""
    source, tensors = pool._sources[candidate.host], {}
    split, join = source.architecture.split, source.architecture.join
    for name in source.names():
        layer, inner = split(name)
        if layer is None:
            tensors[name] = source.tensor(name)
        elif layer < candidate.depth:
            model, number = candidate.path[layer]
            tensors[name] = pool._sources[model].tensor(join(number, inner))
    config = with_layers(source.config, [layer for _, layer in candidate.path])
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(dense, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder

"""An inference path as a Hugging Face model that copies no parameter, for generation with a KV cache."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel

from models.candidate import Candidate
from models.paths.pool import Pool, shallow_clone
from models.sources.architecture import with_layers


def path_model(pool: Pool, candidate: Candidate) -> PreTrainedModel:
    """The causal language model whose layers are the path's, with the host's embedding, final norm and head.

    Every position is a clone of its own with ``layer_idx = position``: the KV cache is indexed by it, and two positions
    that share an index (a repeated layer, or the same layer of two models) would overwrite each other's keys. The
    parameters are the pool's own: don't change them, nor their dtype or device.

    Raises:
        BadInput: the candidate can't be built from this pool.
    """
    pool.check(candidate)
    blocks = [at_position(pool.block(*step), position) for position, step in enumerate(candidate.path)]
    model = pool.with_blocks(candidate.host, blocks)
    config = copy.deepcopy(pool.skeleton.config)
    described = with_layers(pool.skeleton.config.to_dict(), [layer for _, layer in candidate.path])
    for key in (pool.architecture.layer_count, *pool.architecture.per_layer):
        if key in described:
            setattr(config, key, described[key])
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config = config
    if model.can_generate():
        model.generation_config = copy.deepcopy(pool.skeleton.generation_config)
    return model


def at_position(block: nn.Module, position: int) -> nn.Module:
    """A clone of a block that shares its parameters and reads and writes the KV cache at ``position``."""
    clone = shallow_clone(block)
    for module in clone.modules():
        if "layer_idx" in vars(module):
            vars(module)["layer_idx"] = position
    return clone

"""Whether models fit each other: what transformers makes of configs is compared, not what their files leave out."""

from __future__ import annotations

from models.errors import BadInput
from models.sources.architecture import architecture_of, resolved_config
from models.sources.checkpoint import REMEDY, Source


def check_same_sizes(base: Source, other: Source, label: str) -> None:
    """Refuse a model whose blocks and ends don't fit the base's; it may have another number of layers.

    Raises:
        BadInput: another architecture, width, vocabulary or head.
    """
    architecture = architecture_of(base.config)
    ours, theirs = base.config["architectures"][0], (other.config.get("architectures") or ["none"])[0]
    if theirs != ours:
        raise BadInput(f"{label}: config.json: architectures: {theirs}, but the base is a {ours}; {REMEDY}")
    if all(base.config.get(key) == other.config.get(key) for key in architecture.sizes):
        return
    wanted, given = (resolved_config(one.config, f"{label}: config.json") for one in (base, other))
    for key in architecture.sizes:
        known = wanted.get(key) is not None and given.get(key) is not None  # the shapes of tensors decide else
        if known and wanted[key] != given[key]:
            raise BadInput(f"{label}: config.json: {key}: {given[key]}, but the base has {wanted[key]}; {REMEDY}")


def check_compatible(base: Source, other: Source, label: str) -> None:
    """Refuse a model that is no fine-tune of the base.

    Raises:
        BadInput: another architecture, width, vocabulary, head, number of layers or set of tensors.
    """
    check_same_sizes(base, other, label)
    architecture = architecture_of(base.config)
    ours, theirs = architecture.layers(base.config), architecture.layers(other.config)
    if ours != theirs:
        raise BadInput(f"{label}: config.json: {architecture.layer_count}: {theirs}, but the base has {ours}; {REMEDY}")
    if difference := set(base.names()) ^ set(other.names()):
        raise BadInput(f"{label}: {min(difference)}: tensor is in one of base and model only; {REMEDY}")

"""The page on merge methods, written from their registration: ``python docs/merge_methods.py``."""

from __future__ import annotations

import sys
from pathlib import Path

from models.merge.methods import METHODS
from models.merge.registry import Method, Parameter, SearchParameter

PAGE = Path(__file__).with_name("merge-methods.md")
HEAD = """# Merge methods

<!-- Written by `python docs/merge_methods.py` from models/merge; edit the docstrings and registrations there. -->

What a recipe can name as `merge_method`, and the `parameters` that it can set. Θ₀ is the base, Θ_k are the models that
are merged (W for the matrix of a linear layer), δ_k = Θ_k − Θ₀ (Δ_k) their task vectors, w_k the weights, K the number
of experts, λ the parameter `lambda`.

A parameter is set for the whole recipe, or (scope *model*: each model, *expert*: each model but the base) also for a
slice or a single model. Numbers and switches can run over layers (`[0.2, 0.8]`) and differ by tensor (`[{filter: mlp,
value: 0.7}, {value: 0.4}]`). Random methods take a `seed`. Methods work tensor by tensor.
Of entries with equal magnitudes at a threshold, tensors of more than 131,072 entries keep the first; mergekit leaves
the choice to a sort that isn't stable.

*mergekit* says whether [mergekit](https://github.com/arcee-ai/mergekit) rebuilds the same model: `exact`,
`in-distribution` (with other random masks), or `no`. A value that mergekit lacks makes any recipe `no`: named values of
a switch, and parameters marked `own`. *Search* is the range in which the recipe search looks, where it does; methods
without any keep their defaults there, and those that take a certain number of models are left out.
"""


def render() -> str:
    """The whole page."""
    rows = [
        f"| [`{method.name}`](#{method.name}) | {method.title} | {_models(method)} | {_level(method)} |"
        for method in METHODS.values()
    ]
    table = "\n".join(["| method | title | models | mergekit |", "|---|---|---|---|", *rows])
    return "\n\n".join([HEAD.strip(), table, *map(_section, METHODS.values())]) + "\n"


def _section(method: Method) -> str:
    paragraphs = [" ".join(one.split()) for one in (method.merge.__doc__ or "").split("\n\n")]
    text = [one.replace("``", "`") for one in paragraphs if not one.startswith(("Args:", "Returns:", "Raises:"))]
    facts = f"{_models(method)}; mergekit: {_level(method)}. [{method.title}]({method.reference})"
    lines = ["| parameter | kind | scope | default | range | search |", "|---|---|---|---|---|---|"]
    found = {one.name: one for one in method.search}
    lines += [_row(one, found.get(one.name), method) for one in method.parameters]
    return "\n\n".join([f"## {method.name}", *text, facts, *(["\n".join(lines)] if method.parameters else [])])


def _row(parameter: Parameter, search: SearchParameter | None, method: Method) -> str:
    kinds = {bool: "switch", int: "whole number", float: "number", str: ""}
    kind = " or ".join([*filter(None, [kinds[parameter.kind]]), *(f"`{one}`" for one in parameter.choices)])
    own = method.in_mergekit and not parameter.in_mergekit
    default = "required" if parameter.required else "none" if parameter.default is None else _value(parameter.default)
    bounds = [parameter.low, parameter.high]
    limits = f"{bounds[0]:g} … {bounds[1]:g}".replace("-inf", "").replace("inf", "").strip()
    limits = "" if parameter.kind in (bool, str) or limits == "…" else limits
    looked = f"{search.low:g} … {search.high:g}{', each expert' if search.per_model else ''}" if search else ""
    cells = [f"`{parameter.name}`{' (own)' if own else ''}", kind, parameter.scope, default, limits, looked]
    return f"| {' | '.join(cells)} |"


def _value(value: bool | float | str) -> str:
    return f"`{str(value).lower() if isinstance(value, bool | str) else format(value, 'g')}`"


def _models(method: Method) -> str:
    least, most = method.min_experts, method.max_experts
    count = f"{least}" if least == most else f"{least} or more"
    if method.base == "ignored":
        return f"{count} model{'' if most == 1 else 's'}"
    return f"base {'and' if method.base == 'required' else 'if wanted, and'} {count} expert{'' if most == 1 else 's'}"


def _level(method: Method) -> str:
    return "no" if not method.in_mergekit else "in-distribution" if method.random else "exact"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")

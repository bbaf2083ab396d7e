"""Spellings of mergekit's language that mean what another one says: a document in the one that recipes are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REMEDIES = {
    "embed_slerp": "mergekit no longer has it; remove it: a token that a model lacks gets another model's row",
    "residual_weight": "mergekit reads it and does nothing with it; remove it",
}
"""What mergekit once had, and what to do about it."""

HARMLESS = ("int8_mask",)
"""Parameters that save memory in mergekit and change no value: they may stand anywhere there."""


def respell(document: Mapping[str, Any], harmless: bool) -> dict[str, Any]:
    """The document with models as text, one place for the tokenizer, and without blocks that are empty.

    Args:
        document: as YAML gives it.
        harmless: whether its merge method knows ``HARMLESS``; they are left out for one that doesn't.

    Raises:
        ValueError: it holds what means nothing any more, or a model that can't be written as text.
    """
    respelled = {str(key): value for key, value in document.items() if value is not None}
    if "modules" in respelled:
        respelled = _only_module(respelled)
    respelled = _block(respelled, harmless)
    if "slices" in respelled:
        respelled["slices"] = [_slice(one, harmless) for one in _list(respelled["slices"])]
    if "models" in respelled:
        respelled["models"] = [_block(one, harmless) for one in _list(respelled["models"])]
    for key in ("dtype", "out_dtype"):
        if isinstance(respelled.get(key), str):
            respelled[key] = respelled[key].removeprefix("torch.")
    return _tokenizer(respelled)


def reference(model: Any) -> Any:
    """A model as text: ``PATH``, ``PATH@REVISION``, either with ``+ADAPTER``; what is no mapping stays.

    Raises:
        ValueError: it asks for another architecture than its config names.
    """
    if not isinstance(model, Mapping):
        return model
    given = {str(key): value for key, value in model.items() if value is not None}
    if "path" in given:
        return f"{given['path']}@{given['revision']}" if given.get("revision") else given["path"]
    if given.get("override_architecture"):
        raise ValueError("override_architecture: isn't supported; name the architecture in the model's config.json")
    if not set(given) <= {"model", "lora"} or "model" not in given:
        raise ValueError(f"model: {', '.join(given) or 'nothing'} names no model; write its path")
    base = reference(given["model"])
    return f"{base}+{reference(given['lora'])}" if given.get("lora") else base


def _only_module(document: dict[str, Any]) -> dict[str, Any]:
    modules = document.pop("modules")
    if not isinstance(modules, Mapping) or len(modules) != 1 or "models" in document or "slices" in document:
        raise ValueError("modules: only models with one module are merged; write `models` or `slices`")
    (module,) = modules.values()
    if not isinstance(module, Mapping):
        raise ValueError("modules: a module holds `models` or `slices`")
    unknown = set(module) - {"models", "slices", "parameters"}
    if unknown:
        raise ValueError(f"modules: {min(unknown)}: unknown key; remove it or mend its spelling")
    inner = {str(key): value for key, value in module.items() if value is not None}
    inner["parameters"] = {**(document.get("parameters") or {}), **(inner.get("parameters") or {})}
    return {**document, **inner}


def _slice(one: Any, harmless: bool) -> Any:
    if not isinstance(one, Mapping):
        return one
    block = _block(one, harmless)
    if "sources" in block:
        block["sources"] = [_block(source, harmless) for source in _list(block["sources"])]
    return block


def _block(one: Any, harmless: bool) -> Any:
    """A mapping with models as text and parameters that mean something; anything else as it is."""
    if not isinstance(one, Mapping):
        return one
    block = {str(key): value for key, value in one.items() if value is not None}
    for key in REMEDIES:
        if key in block or (isinstance(block.get("parameters"), Mapping) and block["parameters"].get(key)):
            raise ValueError(f"{key}: {REMEDIES[key]}")
    for key in ("model", "base_model"):
        if key in block:
            block[key] = reference(block[key])
    if isinstance(block.get("parameters"), Mapping):
        dropped = (*REMEDIES, *(() if harmless else HARMLESS))
        block["parameters"] = {
            str(key): value for key, value in block["parameters"].items() if key not in dropped and value is not None
        }
    return block


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _tokenizer(document: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer`` that names a source alone is ``tokenizer_source``; models in either are text."""
    if "tokenizer_source" in document:
        if "tokenizer" in document:
            raise ValueError("tokenizer: give either `tokenizer` or `tokenizer_source`")
        document["tokenizer_source"] = _source(document["tokenizer_source"])
    tokenizer = document.get("tokenizer")
    if not isinstance(tokenizer, Mapping):
        return document
    block = {str(key): value for key, value in tokenizer.items() if value is not None and value != {}}
    block["source"] = _source(block.get("source", "union"))
    if set(block) == {"source"}:
        del document["tokenizer"]
        return {**document, "tokenizer_source": block["source"]}
    if isinstance(block.get("tokens"), Mapping):
        block["tokens"] = {str(token): _token(how) for token, how in block["tokens"].items()}
    return {**document, "tokenizer": block}


def _token(how: Any) -> Any:
    if not isinstance(how, Mapping):
        return how
    source = how.get("source")
    if isinstance(source, Mapping) and "kind" in source:
        source = {key: reference(value) if key == "model" else value for key, value in source.items()}
    else:
        source = reference(source)
    return {**{key: value for key, value in how.items() if value is not None}, "source": source}


def _source(source: Any) -> Any:
    """A model, ``union`` or ``base``; mergekit once wanted ``model:`` before a model."""
    text = reference(source)
    return text.removeprefix("model:") if isinstance(text, str) else text

"""Settings of a recipe: a number, switch or named value, a gradient over layers, or either by tensor, as in mergekit.

weight: 0.5                                        one value
weight: [0.2, 0.8]                                 from the first layer of the slice to the last, linear between
weight: [{filter: mlp, value: 0.7}, {value: 0.4}]  the first whose filter is part of the tensor's name
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from models.merge.registry import Parameter, Scalar

Setting = Scalar | list[Scalar] | list[dict[str, Any]]
Settings = dict[str, Setting]


def normalise(settings: Any) -> dict[str, Any]:
    """Settings in one spelling: sorted by name, numbers as floats, a single condition as a list of one.

    Raises:
        ValueError: something is neither number, switch, gradient nor condition.
    """
    if not isinstance(settings, Mapping):
        raise ValueError("must be a mapping from names to values")
    return {
        str(name): value if name == "seed" else _setting(str(name), value) for name, value in sorted(settings.items())
    }


def check(parameter: Parameter, setting: Setting) -> None:
    """Refuse values of the wrong kind or out of range.

    Raises:
        ValueError: with the reason.
    """
    conditions = setting if isinstance(setting, list) and isinstance(setting[0], dict) else [{"value": setting}]
    for value in (one["value"] for one in conditions if isinstance(one, dict)):
        for scalar in value if isinstance(value, list) else [value]:
            _check_scalar(parameter, scalar)
            if isinstance(value, list) and (parameter.kind is int or isinstance(scalar, str)):
                raise ValueError("takes one value for all layers, not a gradient")


def scalars(setting: Setting) -> list[Any]:
    """All values in a setting."""
    if not isinstance(setting, list):
        return [setting]
    return [scalar for one in setting for scalar in (scalars(one["value"]) if isinstance(one, dict) else [one])]


def _check_scalar(parameter: Parameter, value: Any) -> None:
    if isinstance(value, str):
        if value in parameter.choices:
            return
        if parameter.kind is float or parameter.kind is int:
            raise ValueError(f"{value!r} must be a number")
    if parameter.kind is str:
        raise ValueError(f"{value} must be {' or '.join(parameter.choices)}")
    if parameter.kind is bool and not isinstance(value, bool):
        named = f", or {' or '.join(parameter.choices)}" if parameter.choices else ""
        raise ValueError(f"{value} must be true or false{named}")
    if parameter.kind is not bool and isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} must be a number")
    if parameter.kind is int and value != int(value):
        raise ValueError(f"{value} must be a whole number")
    if parameter.kind is not bool and not parameter.low <= value <= parameter.high:
        raise ValueError(f"{value} must lie between {parameter.low:g} and {parameter.high:g}")


def resolve(parameter: Parameter, scopes: Iterable[Settings], tensor: str, t: float) -> Scalar | None:
    """Value of a parameter for one tensor.

    Args:
        scopes: settings from the nearest to the farthest; the first that has a value for the tensor counts.
        tensor: name of the tensor in the model that the value is for.
        t: relative depth in the slice, from 0 to 1.

    Returns:
        The value, the parameter's default, or None where it has none.
    """
    for settings in scopes:
        if parameter.name in settings:
            value = _evaluate(settings[parameter.name], tensor, t)
            if value is not None:
                return int(value) if parameter.kind is int else value
    return parameter.default


def _evaluate(setting: Setting, tensor: str, t: float) -> Scalar | None:
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        for condition in setting:
            assert isinstance(condition, dict)  # noqa: S101 (lists hold one kind)
            if condition.get("filter") in (None, "*") or condition["filter"] in tensor:
                return _evaluate(condition["value"], tensor, t)
        return None
    gradient: list[Any] = setting
    place = t * (len(gradient) - 1)
    first = int(place)
    if isinstance(gradient[0], bool):
        return bool(gradient[first])
    second, share = min(len(gradient) - 1, first + 1), place - first
    return float((1 - share) * gradient[first] + share * gradient[second])


def _setting(name: str, value: Any) -> Setting:
    conditions = [value] if isinstance(value, Mapping) else value
    if isinstance(conditions, list) and any(isinstance(one, Mapping) for one in conditions):
        return [_condition(name, one) for one in conditions]
    return _gradient(name, value)


def _condition(name: str, condition: Any) -> dict[str, Any]:
    if not isinstance(condition, Mapping) or not {"value"} <= set(condition) <= {"filter", "value"}:
        raise ValueError(f"{name}: a condition holds `value` and, if it is for some tensors only, `filter`")
    pattern = condition.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"{name}: filter: {pattern!r} must be a part of tensor names")
    value = _gradient(name, condition["value"])
    return {"value": value} if pattern is None else {"filter": pattern, "value": value}


def _gradient(name: str, value: Any) -> Scalar | list[Scalar]:
    if not isinstance(value, list):
        return _scalar(name, value)
    values = [_scalar(name, one) for one in value]
    if not values or len({isinstance(one, bool) for one in values}) > 1:
        raise ValueError(f"{name}: a gradient is a list of numbers, or of true and false")
    return values


def _scalar(name: str, value: Any) -> Scalar:
    if isinstance(value, bool):
        return value
    try:
        number = float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        if isinstance(value, str):
            return value
        raise ValueError(f"{name}: {value!r} must be a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: {value} must be finite")
    return number

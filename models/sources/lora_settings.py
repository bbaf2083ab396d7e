"""What the settings of an adapter mean: each field that is understood, and what a start has taken out of the base."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex  # has a limit of time, and means by these expressions what re means
import torch
from torch import Tensor

from models.errors import BadInput, one_line
from models.files import find_inside, read_object, reading
from models.sources.fields import AdapterConfig

CONFIG = "adapter_config.json"
FILES = f"an adapter is a folder with {CONFIG} and adapter_model.safetensors"
READ = ("peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "modules_to_save")
"""Fields that decide what the tensors of the file do."""

WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "rank_pattern", "target_modules"),
    *("bias", "corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
)
"""Fields that the tensors of the file have followed already, or that mean something beside another one alone."""

LARGEST = 1e6
"""Scaling factors are smaller: real ones are below 100."""

SECONDS = 1.0
"""Longest time for an adapter's patterns."""

INITS = ("true", "false", "gaussian", "eva", "orthogonal", "mica", "pissa", "olora")
"""Of ``init_lora_weights``: all but the last two leave the base as it is."""

REMEDY = "merge it into its base with peft's merge_and_unload, save that, and name the folder"
CONVERSION = (
    "part of the base was taken out when training began, and the adapter doesn't hold it; save it once more with"
    " peft's save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge it where it was trained"
)


def read_settings(adapter: Path) -> dict[str, Any]:
    """The fields of an adapter's config.

    Raises:
        BadInput: it is missing or damaged, of another kind, or has a field whose meaning isn't understood.
    """
    if not adapter.is_dir():
        raise BadInput(f"{adapter}: no such folder; {FILES}")
    if find_inside(adapter, CONFIG) is None:
        raise BadInput(f"{adapter}: {CONFIG}: missing; {FILES}")
    settings = read_object(adapter, CONFIG, AdapterConfig)
    kind = settings.get("peft_type")
    settings.setdefault("fan_in_fan_out", False)
    if kind != "LORA":
        raise BadInput(f"{adapter}: {CONFIG}: peft_type: {kind} isn't supported, LORA is; {REMEDY}")
    if (start := start_of(settings, all_of_them=True)) not in INITS:
        raise BadInput(f"{adapter}: {CONFIG}: init_lora_weights: {start}: {CONVERSION}")
    for key, value in settings.items():
        known = key in (*READ, *WITHOUT_EFFECT, "init_lora_weights") or value in (None, False, "", [], {})
        if not known and not _is_default(key, value):
            raise BadInput(f"{adapter}: {CONFIG}: {key}: {one_line(value, 80)} isn't supported; {REMEDY}")
    if settings.get("r") is None or settings.get("lora_alpha") is None:
        raise BadInput(f"{adapter}: {CONFIG}: r and lora_alpha: missing; fetch or copy it again")
    return settings


class Patterns:
    """Numbers by the names of modules: the first pattern that fits says, a regular expression as peft takes it."""

    def __init__(self, settings: Mapping[str, Any], key: str, default: str, adapter: Path) -> None:
        """Of the field ``key`` of an adapter's config, with another field for modules that fit no pattern."""
        self._label = f"{adapter}: {CONFIG}: {key}"
        self._patterns: Mapping[str, Any] = settings.get(key) or {}
        self._default = settings[default]
        self._left = SECONDS

    def __getitem__(self, module: str) -> Any:
        """What holds for a module.

        Raises:
            BadInput: a pattern is no regular expression, or takes too long.
        """
        for pattern, own in self._patterns.items():
            with reading(f"{self._label}: {pattern!r}"):
                start = time.monotonic()
                fits = regex.match(rf"(.*\.)?({pattern})$", module, timeout=self._left)
                self._left -= time.monotonic() - start
                if self._left <= 0:
                    raise TimeoutError("takes too long")
                if fits:
                    return own
        return self._default


class Scaling:
    """The factor s of each module of an adapter."""

    def __init__(self, settings: Mapping[str, Any], adapter: Path) -> None:
        self._adapter = adapter
        self._ranks = Patterns(settings, "rank_pattern", "r", adapter)
        self._alphas = Patterns(settings, "alpha_pattern", "lora_alpha", adapter)
        self._by_root = bool(settings.get("use_rslora"))

    def of(self, module: str, rank: int) -> float:
        """s of a module whose first factor has so many rows.

        Raises:
            BadInput: the config means another rank, or s is no number that can be multiplied with.
        """
        if (meant := self._ranks[module]) != rank:
            raise BadInput(f"{self._adapter}: {module}: has rank {rank}, but {CONFIG} says {meant}; fetch it again")
        scaling = float(self._alphas[module]) / (math.sqrt(rank) if self._by_root else rank)
        if not abs(scaling) < LARGEST:
            raise BadInput(f"{self._adapter}: {module}: {CONFIG}: scales by {scaling:g}; fetch or copy it again")
        return scaling


def start_of(settings: Mapping[str, Any], all_of_them: bool = False) -> str:
    """How the factors began, where that took something out of the base; else nothing, unless all are asked for."""
    start = str(settings.get("init_lora_weights", True)).lower()
    return start if all_of_them or start in ("pissa", "olora") else ""


def _is_default(key: str, value: Any) -> bool:
    """Whether it is peft's own value of a field that nothing here knows."""
    from peft import LoraConfig  # takes seconds, and few adapters need it

    return bool(getattr(LoraConfig(), key, None) == value)


def without_start(weight: Tensor, start: str, scaling: float, transposed: bool, rank: int) -> Tensor:
    """W less s·B₀·A₀ of the start: its r largest singular triplets (PiSSA, Meng et al. 2024), or first r rows of R in
    QR (OLoRA, Büyükakyüz 2024). Rounded as peft rounds it, which trained over that.
    """
    matrix = weight.float().T if transposed else weight.float()
    if start == "pissa":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        part = (left[:, :rank] * values[:rank]) @ right[:rank]
    else:
        q, r = torch.linalg.qr(matrix)
        part = scaling * (q[:, :rank] @ r[:rank])
    rest: Tensor = matrix - part
    return (rest.T if transposed else rest).to(weight.dtype)

"""Recipes to a Hugging Face folder, tensor by tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.blocks import Dtype
from models.merge.card import model_card
from models.merge.chat_template import with_template
from models.merge.recipe import Recipe, dump_recipes
from models.merge.source import MergedSource, open_recipes
from models.sources.architecture import architecture_of
from models.sources.checkpoint import Model, Source, require_new, write_checkpoint
from models.sources.heads import Heads
from models.sources.lora import open_model
from models.sources.tensors import require_finite
from models.sources.vocabulary import Vocabulary, tokenizer_texts
from models.sources.vocabulary_source import vocabulary_of

RECIPE_FILE = "recipe.yaml"


class FiniteModel:
    """A model that refuses NaN and infinity in every tensor that is read."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.config: dict[str, Any] = model.config

    @property
    def vocabulary(self) -> Vocabulary:
        """Which token each row of its embedding belongs to."""
        return self.model.vocabulary

    def names(self) -> list[str]:
        """See ``Source``."""
        return self.model.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``.

        Raises:
            BadInput: it holds NaN or infinity.
        """
        return require_finite(self.model.tensor(name), f"{self.model.label}: {name}")

    def digest(self, group: str) -> str:
        """See ``Source``."""
        return self.model.digest(group)


def merge_to_disk(
    recipes: Sequence[Recipe],
    out: Path,
    find: Callable[[str], Path],
    device: str = "cpu",
    dtype: Dtype | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    heads: Heads | None = None,
    extra: Mapping[str, str] | None = None,
    learn: Callable[[MergedSource, Path], None] | None = None,
) -> None:
    """Write the model that the last recipe makes, with tokenizer, recipe and model card.

    One tensor of each model, and what it is merged into, are held in memory. Nothing is written unless all of it is.

    Args:
        recipes: as :func:`models.merge.recipe.parse_recipes` gives them.
        out: folder to make.
        find: folder of a model, or an adapter, that a recipe names.
        device: where tensors are merged.
        dtype: what is stored, instead of the last recipe's ``out_dtype``.
        on_tensor: is told after each tensor how many are written, and of how many.
        heads: of an encoder of images, which is given them; they lie beside it, too.
        extra: further text files by name.
        learn: lets a source do so whose method learns, with the folder of its tokenizer.

    Raises:
        BadInput: ``out`` is there already; a checkpoint is missing, damaged or doesn't fit; a result isn't finite.
    """
    require_new(out)
    if dtype is not None:
        recipes = [*recipes[:-1], recipes[-1].model_copy(update={"out_dtype": dtype})]
    opened: dict[str, FiniteModel] = {}

    def resolve(name: str) -> FiniteModel:
        if name not in opened:
            opened[name] = FiniteModel(open_model(name, find))
        return opened[name]

    def learning(source: MergedSource) -> None:
        assert learn is not None  # noqa: S101 (it is asked for below only if it is there)
        learn(source, resolve(tokenizer_model(recipes)).model.tokenizer)

    merged = open_recipes(recipes, resolve, device, learning if learn else None)
    recipes, vocabulary = merged.recipes, vocabulary_of(merged)
    classes = {task: one.classes for task, one in heads.tasks.items()} if heads else None
    card = model_card(out.name, recipes, vocabulary, classes)
    described: dict[str, str | bytes] = {RECIPE_FILE: dump_recipes(recipes), "README.md": card, **(extra or {})}
    if heads:
        described |= heads.files
    final = heads.on(merged) if heads else merged
    tokenizer = resolve(tokenizer_model(recipes)).model.tokenizer
    folders = [one.model.tokenizer for one in opened.values()]
    texts = with_template(tokenizer_texts(vocabulary), recipes[-1].chat_template, tokenizer, folders)
    write_checkpoint(
        out,
        final.config,
        _stream(final, merged.device, [one.model for one in opened.values()], on_tensor),
        tokenizer_from=tokenizer,
        extra={**texts, **described},
    )


def tokenizer_model(recipes: Sequence[Recipe]) -> str:
    """The model that lends the last recipe its tokenizer: ``tokenizer_source``, else the base, else the first model."""
    named = {recipe.name: recipe for recipe in recipes[:-1]}
    recipe = recipes[-1]
    while True:
        source = recipe.vocabulary_source
        model = recipe.referenced[0] if source in (None, "base", "union") else source
        assert model is not None  # noqa: S101 (narrowed above)
        if model not in named:
            return model
        recipe = named[model]


def _stream(
    merged: Source, device: str, models: Sequence[Model], on_tensor: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the layers in their order, then norm and head, and the embedding at last."""
    architecture = architecture_of(merged.config)

    def place(name: str) -> tuple[float, str]:
        layer, inner = architecture.split(name)
        outside = float("inf") if name == architecture.embedding else architecture.layers(merged.config)
        return (outside if layer is None else layer), inner

    names = sorted(merged.names(), key=place)
    group = None
    tensors = _computed_ahead(merged, device, names)
    for number, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        if architecture.group(name) != group:
            group = architecture.group(name)
            for model in models:
                model.release()
        yield name, _finite(tensor, name)
        if on_tensor:
            on_tensor(number + 1, len(names))


def _computed_ahead(merged: Source, device: str, names: Sequence[str]) -> Iterator[Tensor]:
    """Merged tensors in order; on the CPU one a core at a time, each by one thread, as many as torch has.

    That is faster than to share each of the many small sums among threads. The last tensor, which is the largest, is
    begun first, so that no core waits for it.
    """
    if torch.device(device).type != "cpu":
        yield from map(merged.tensor, names)
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        waiting: deque[Future[Tensor]] = deque()
        try:
            last = executor.submit(merged.tensor, names[-1])
            for name in names[:-1]:
                waiting.append(executor.submit(merged.tensor, name))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            yield last.result()
        finally:
            for one in waiting:
                one.cancel()
            torch.set_num_threads(threads)


def _finite(tensor: Tensor, name: str) -> Tensor:
    """The inputs were finite, so what isn't has left the range of the number format."""
    try:
        return require_finite(tensor, name)
    except BadInput:
        raise BadInput(f"{name}: the merge leaves the range of {tensor.dtype}; set dtype: float32") from None

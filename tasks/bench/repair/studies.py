"""What the benchmark asks: how much is lost by layers left out, by calibration, by further moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

from models.candidate import Candidate
from models.paths.prefix import Requests
from models.paths.repair import calibrate, seams_of
from tasks.bench.repair import distil
from tasks.bench.repair.arms import (
    LOW_RIDGE,
    MORE_TOKENS,
    RIDGE,
    TOKENS,
    Cut,
    cut_path,
    forget,
    growing,
    repaired,
    replace_me,
    runs,
)
from tasks.bench.repair.foreign import changes, paths
from tasks.bench.repair.halves import PARTS, Half, left_out, repairs_of, saved, without
from tasks.bench.repair.measure import LONGEST, Lab, greedy, spelled
from tasks.bench.repair.rows import Row
from tasks.bench.repair.sweep import in_turn, with_attention

DEPTHS = (1, 2, 3, 4, 6)
"""Layers left out that are reported."""

TRIED, DEEP = (1, 4), 4
"""Of these, those on which dear arms are tried; and the most that greedy deletion without repair leaves out."""

SIZES = (1_000, 4_000, 8_000, 16_000, 64_000)
"""Tokens of calibrations."""

HALVES = (1, 4)
"""Halves of layers that are left out together: those that their calibration foresees best."""

SAVED, REPETITIONS = (1, 4), 3
"""Layers of which the savings are measured, and how often."""

FRESH = 28_000
"""Tokens of a distillation's texts."""

MOST = 16_000
"""Tokens of a calibration on a made family, which has no more."""

PAGES = Path("docs")
"""Plain text: the project's own pages."""

PUBLISHED: tuple[Cut, ...] = ((9,), (9, 18), (9, 15, 18), (9, 14, 15, 18))
"""Cuts of SmolLM2 that the method was first tried on."""


def depth(lab: Lab) -> None:
    """Losses by layers left out, for each way to repair them."""
    ground = lab.ground
    lab.measure_uncut()
    by_ours = [cut for cut in greedy(lab, "ours", lab.ours, max(DEPTHS)) if len(cut) in DEPTHS]
    first = list(dict.fromkeys([*by_ours, *(PUBLISHED if ground.name == "smollm2" else ())]))
    lab.measure_cuts("depth", "naive", first, lab.naive)
    lab.measure_cuts("depth", "ours", first, lab.ours, TOKENS)

    def resolved(cuts: Sequence[Cut]) -> list[Candidate]:
        return lab.solved(cuts, lab.texts(MORE_TOKENS), LOW_RIDGE)

    def one_by_one(cuts: Sequence[Cut]) -> list[Candidate]:
        return [in_turn(ground, cut_path(ground, cut), lab.texts(TOKENS), RIDGE) for cut in cuts]

    def squares(cuts: Sequence[Cut]) -> list[Candidate]:
        return replace_me(ground, cuts, lab.texts(TOKENS), cosine=False)

    def cosine(cuts: Sequence[Cut]) -> list[Candidate]:
        return replace_me(ground, cuts, lab.texts(TOKENS), cosine=True)

    def all_behind(cuts: Sequence[Cut]) -> list[Candidate]:
        texts = lab.texts(MORE_TOKENS)
        return [in_turn(ground, cut_path(ground, cut), texts, LOW_RIDGE, every=True) for cut in cuts]

    few = [cut for cut in by_ours if len(cut) in TRIED]
    lab.measure_cuts("depth", "ours, solved again", first, resolved, MORE_TOKENS)
    for cut in [*first[len(by_ours) :][-1:], *by_ours[::-1]]:
        lab.measure_cuts("depth", "every later layer, solved again", [cut], all_behind, MORE_TOKENS)
    lab.measure_cuts("depth", "ours, in turn", few, one_by_one, TOKENS)
    if ground.kind.unit != "image":
        lab.measure_cuts("depth", "ReplaceMe, least squares", few, squares, TOKENS)
        lab.measure_cuts("depth", "ReplaceMe, cosine", few, cosine, TOKENS)
    by_naive = [cut for cut in greedy(lab, "naive", lab.naive, DEEP) if len(cut) in DEPTHS]
    lab.measure_cuts("depth", "naive", by_naive, lab.naive)
    lab.measure_cuts("depth", "ours", by_naive, lab.ours, TOKENS)


def cost(lab: Lab) -> None:
    """What a calibration of every short run takes, and repairing a candidate against scoring it on the search items."""
    ground, cut = lab.ground, _chosen(lab, DEEP)
    names = ("seconds of a calibration", "items of a calibration", "seconds to repair", "seconds to score")
    cases = [lab.case("cost", one, spelled(cut), "search") for one in names]
    if all(one in lab.book for one in cases):
        return
    path, requests = cut_path(ground, cut), lab.texts(TOKENS)
    ground.score([path], ground.search)
    began = time.perf_counter()
    folds = calibrate(ground.pool, requests, runs(ground.layers, LONGEST), RIDGE)
    calibrated = time.perf_counter() - began
    repairing, scoring = [], []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        ours = repaired(ground, path, folds)
        for step in ours.path:
            ground.pool.block(*step)
        repairing.append(time.perf_counter() - began)
        began = time.perf_counter()
        ground.score([ours], ground.search)
        scoring.append(time.perf_counter() - began)
        forget(ground)
    values = (calibrated, float(requests.count), median(repairing), median(scoring))
    rows = {case: (Row(len(cut), TOKENS, value=value), None) for case, value in zip(cases, values, strict=True)}
    lab.book.add(rows, None)


def tokens(lab: Lab) -> None:
    """How one cut's losses fall with what it is calibrated on."""
    ground = lab.ground
    lab.measure_uncut()
    if ground.kind.unit == "image":
        return
    cut = _chosen(lab, DEEP)
    naive = cut_path(ground, cut)
    sizes = [size for size in SIZES if ground.kind.unit == "byte" or size <= MOST]
    by_ridge = {RIDGE: sizes, LOW_RIDGE: [size for size in sizes if size >= TOKENS]}
    if lab.case("tokens", f"ridge {LOW_RIDGE}", f"{sizes[-1]}") not in lab.book:
        lab.tell("tokens: calibrate")
        grown = growing(ground, cut, sizes, (RIDGE, LOW_RIDGE))
        for ridge, some in by_ridge.items():
            lab.measure(
                "tokens",
                f"ridge {ridge}",
                [f"{size}" for size in some],
                lambda left, ridge=ridge: [repaired(ground, naive, grown[int(one), ridge]) for one in left],  # type: ignore[misc]
                Row(len(cut), note=spelled(cut)),
            )
    kinds: dict[str, Callable[[], Requests]] = {
        f"without {task}": partial(ground.texts, TOKENS, [one for one in ground.tasks if one != task])
        for task in ground.tasks
    }
    kinds["prompts alone"] = partial(ground.texts, TOKENS, answers=False)
    kinds["plain text"] = partial(ground.plain, TOKENS, PAGES)

    def of_kinds(some: Sequence[str]) -> list[Candidate]:
        return [lab.solved([cut], kinds[one](), RIDGE)[0] for one in some]

    lab.measure("tokens", f"ridge {RIDGE}", list(kinds), of_kinds, Row(len(cut), TOKENS, note=spelled(cut)))


def moves(lab: Lab) -> None:
    """Further moves on cuts that are repaired already."""
    ground = lab.ground
    lab.measure_uncut()
    cuts = [_chosen(lab, DEEP)]

    def every(some: Sequence[Cut]) -> list[Candidate]:
        return [in_turn(ground, cut_path(ground, cut), lab.texts(TOKENS), RIDGE, every=True) for cut in some]

    def most(some: Sequence[Cut]) -> list[Candidate]:
        return [in_turn(ground, cut_path(ground, cut), lab.texts(SIZES[-1]), LOW_RIDGE, every=True) for cut in some]

    def attentive(some: Sequence[Cut], every: bool = False) -> list[Candidate]:
        return [with_attention(ground, cut_path(ground, cut), lab.texts(TOKENS), RIDGE, every) for cut in some]

    lab.measure_cuts("moves", "every later layer", cuts, every, TOKENS)
    if ground.kind.unit == "byte":
        lab.measure_cuts("moves", "every later layer, 64,000 tokens", cuts, most, SIZES[-1])
    if ground.kind.unit != "image":
        lab.measure_cuts("moves", "in turn, attention too", cuts, attentive, TOKENS)
        lab.measure_cuts("moves", "every later layer, attention too", cuts, partial(attentive, every=True), TOKENS)
        lab.measure_cuts("moves", "solved, then distilled", cuts, lambda some: distilled_all(lab, some), TOKENS)


def _chosen(lab: Lab, size: int) -> Cut:
    """The cut of so many layers that greedy deletion with repair makes."""
    return greedy(lab, "ours", lab.ours, size)[-1]


def distilled_all(lab: Lab, cuts: Sequence[Cut]) -> list[Candidate]:
    """Cuts that are solved for, then trained for a little on texts that come behind."""
    ground = lab.ground
    solved = lab.solved(cuts, lab.texts(TOKENS), RIDGE)
    fresh = ground.texts(FRESH, skip=TOKENS // len(ground.tasks), batch=distil.TOKENS)
    return [distil.distilled(ground, one, fresh) for one in solved]


def foreign(lab: Lab) -> None:
    """Seams where a path goes over to another model or back: left alone, and refitted to what comes next."""
    ground = lab.ground
    lab.measure_uncut()
    whats = changes(ground)

    def refitted(some: Sequence[str]) -> list[Candidate]:
        found = paths(ground, some)
        wanted = {seam for one in found for seam in seams_of(one, ground.layers).values()}
        folds = calibrate(ground.pool, lab.texts(TOKENS), wanted, RIDGE)
        return [repaired(ground, one, folds) for one in found]

    lab.measure("foreign", "left alone", whats, lambda some: paths(ground, some), split="search")
    lab.measure("foreign", "refitted", whats, refitted, Row(0, TOKENS), "search")


def halves(lab: Lab) -> None:
    """Attention or MLP of a layer left out alone: what it costs, and what it saves."""
    ground = lab.ground
    if ground.kind.unit == "image":
        return
    lab.measure_uncut()
    counted = [(part, count) for part in PARTS for count in HALVES]
    if lab.count("halves") == 2 * len(counted):
        return
    repairs = repairs_of(ground, TOKENS, RIDGE)
    for part, count in counted:
        own = sorted((one for one in repairs if one.part == part and one.layer), key=lambda one: repairs[one].left)
        chosen = sorted(own[:count], key=lambda one: one.layer)
        what, row = ", ".join(map(str, chosen)), Row(count / 2, TOKENS)
        lab.measure("halves", "naive", [what], lambda _, some=chosen: [left_out(ground, some)], row)  # type: ignore[misc]
        lab.measure("halves", "repaired", [what], lambda _, some=chosen: [left_out(ground, some, repairs)], row)  # type: ignore[misc]


def savings(lab: Lab) -> None:
    """What layers and halves that are left out save: time of a token at batch 1 and 32, and bytes of its cache."""
    ground = lab.ground
    if ground.kind.unit == "image":
        return
    shown = {"uncut": ((), ())}
    for count in SAVED:
        places = [1 + (ground.layers - 2) * one // count for one in range(count)]
        shown[f"{count} layers"] = (places, ())  # type: ignore[assignment]
        for part in PARTS:
            shown[f"{part} of {count} layers"] = ((), [Half(part, one) for one in places])  # type: ignore[assignment]
    for batch, (what, (layers, parts)) in product((1, 32), shown.items()):
        names = [f"milliseconds a token, batch {batch}", *(["cache bytes a token"] if batch == 1 else [])]
        cases = [lab.case("savings", one, what) for one in names]
        if all(case in lab.book for case in cases):
            continue
        lab.tell(f"savings: {what}, batch {batch}")
        model = without(ground, layers, parts)
        values = [min(some) for some in zip(*(saved(model, batch) for _ in range(REPETITIONS)), strict=True)]
        row = Row(len(layers) + len(parts) / 2)
        rows = {case: (replace(row, value=value), None) for case, value in zip(cases, values, strict=False)}
        lab.book.add(rows, None)

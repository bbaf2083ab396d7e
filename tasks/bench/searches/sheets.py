"""Tables of a study, as words: the same for a terminal, for the page and for ``--json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tasks.bench.markdown import Sheet
from tasks.bench.searches.cuts import LOSSES, deepest
from tasks.bench.searches.statistics import Comparison
from tasks.bench.searches.summary import MARGIN, OURS, TARGET, Study


def sheets(study: Study) -> list[Sheet]:
    """All tables that there are rows for."""
    found = [final_sheet(study), best_sheet(study), depth_sheet(study), cut_sheet(study)]
    found += [comparison_sheet(study, title, made) for title, made in study.comparisons.items()]
    found += [noninferiority_sheet(study), reach_sheet(study), wall_sheet(study)]
    return [one for one in found if one.rows]


def overview_sheet(named: Mapping[str, Study]) -> Sheet:
    """What came of each study, in a row."""
    rows = []
    for title, study in named.items():
        against, last = study.comparisons.get("baselines", []), study.noninferiority[-1:]
        if not (against and last):
            continue
        best = next(one for one in against if one.arm == last[0].arm)
        reach, wall = study.reach, study.wall
        ours = reach[reach["arm"] == OURS] if len(reach) else None
        rows.append(
            (
                title,
                f"{study.ahead(best.arm)} of {study.rows['family'].nunique()}",
                str(best.pairs),
                f"{best.ours:.3f}",
                f"{best.arm} {best.theirs:.3f}",
                f"{best.difference:+.3f} ({best.low:+.3f} – {best.high:+.3f})",
                f"{sum(one.significant and one.difference > 0 for one in against)} of {len(against)}",
                finite(ours["share"], "{:.0%}") if ours is not None else "–",
                f"{wall.loc[wall['arm'] == OURS, 'share'].median():.0%}",
            )
        )
    note = (
        "Hypervolume on test at the whole budget, medians; the best baseline is that of the highest median, and the "
        "difference is the paired one with its 95 % bootstrap interval. Families: in how many the "
        "median difference is above 0; pairs: searches of both, several a family. Better than: Wilcoxon's test over "
        "the pairs, after Holm, at 5 %. To match: the share of the budget after which HM3 has what "
        f"{TARGET} has in the end. Own time: what HM3 spends outside of model forwards."
    )
    columns = ("", "families", "pairs", "HM3", "best baseline", "difference", "better than", "to match", "own time")
    return Sheet("At a glance", note, columns, tuple(rows))


def cuts_overview_sheet(named: Mapping[str, Study]) -> Sheet:
    """Layers that can go at the greatest accepted loss, in the mean: HM3, and the baselines that go furthest."""
    rows = []
    for title, study in named.items():
        found = {arm: (float(gone.mean()), float(lost.mean())) for arm, gone, lost in cut_runs(study, LOSSES[-1])}
        others = [arm for arm in found if arm in study.of("baseline", "paper")]
        if OURS in found and others:
            best = max(others, key=lambda arm: (found[arm], arm))
            cells = [f"{gone:.2f} ({lost:.1%})" for gone, lost in (found[OURS], found[best])]
            rows.append((title, cells[0], f"{best} {cells[1]}"))
    note = (
        f"Layers that can go from the balanced model while no task is promised to lose more than {LOSSES[-1]:.0%} of "
        "its score, as measured on search, and what the worst task then loses on test: means over all runs."
    )
    return Sheet("How deep the balanced model can be cut", note, ("", "HM3", "best baseline"), tuple(rows))


def final_sheet(study: Study) -> Sheet:
    """Indicators at the whole budget."""
    shown = {
        "HV": "hv",
        "HV of tasks": "hv_tasks",
        "IGD⁺": "igd_plus",
        "ε": "epsilon",
        "R2": "r2",
        "members": "members",
    }
    shown = {title: name for title, name in shown.items() if study.final[name].notna().all()}
    rows = tuple(
        (
            arm,
            str(len(own)),
            *(spread(own[name], "{:.0f}" if name == "members" else "{:.3f}") for name in shown.values()),
        )
        for arm, own in _by_arm(study, study.final)
    )
    note = (
        "Median (quartiles) over families and seeds, on test. HV is a fraction of the box, more is better; IGD⁺, ε and "
        "R2 are in units of the range from ideal to nadir, less is better, the first two against the union of all arms."
    )
    return Sheet("At the whole budget", note, ("arm", "runs", *shown), rows)


def best_sheet(study: Study) -> Sheet:
    """Best score by objective."""
    names = [f"best {name}" for name in study.tasks]
    rows = tuple((arm, *(spread(own[name]) for name in names)) for arm, own in _by_arm(study, study.final))
    return Sheet("Best score by objective", "Median (quartiles) of the best member's, on test.", ("arm", *names), rows)


def depth_sheet(study: Study) -> Sheet:
    """Hypervolume of the task objectives that members of at most T layers reach."""
    names = [name for name in study.final.columns if name.startswith("hv ≤ ")] if study.depth else []
    rows = (
        tuple((arm, *(spread(own[name]) for name in names)) for arm, own in _by_arm(study, study.final))
        if names
        else ()
    )
    note = (
        "Hypervolume of the task objectives that members of at most so many layers have, on test: median (quartiles)."
    )
    titles = tuple(name.replace("hv ≤ ", "≤ ") + " layers" for name in names)
    return Sheet("Hypervolume by depth", note, ("arm", *titles), rows)


def cut_sheet(study: Study) -> Sheet:
    """How deep the balanced model can be cut for a loss that people may accept."""
    by_loss = [{arm: (gone, lost) for arm, gone, lost in cut_runs(study, loss)} for loss in LOSSES]
    rows = [
        (arm, *(f"{one[arm][0].median():.3g} ({one[arm][1].median():.1%})" for one in by_loss)) for arm in by_loss[0]
    ]
    note = (
        "Layers that can go while no task is promised to lose more than that of the balanced full-depth model's score, "
        "as measured on search, and what the worst task then loses on test: medians. Any recipe may take part."
    )
    columns = ("arm", *(f"loss ≤ {loss:.0%}" for loss in LOSSES))
    return Sheet("How deep the balanced model can be cut", note, columns, tuple(rows))


def cut_runs(study: Study, loss: float) -> Iterable[tuple[str, pd.Series, pd.Series]]:
    """Of each arm the layers that can go for a loss, and the loss on test, run by run."""
    for arm, own in _by_arm(study, study.cuts) if len(study.cuts) else ():
        runs: Any = own.groupby(["family", "seed"])  # pandas types no keys
        found = [(int(family), deepest(run, loss)) for (family, _), run in runs]
        gone = pd.Series([study.base_layers(family) - one[0] if one else 0 for family, one in found])
        yield arm, gone, pd.Series([one[1] if one else 0.0 for _, one in found])


def comparison_sheet(study: Study, title: str, made: list[Comparison]) -> Sheet:
    """HM3 less each other arm."""
    rows = tuple(
        (
            one.arm,
            str(one.pairs),
            f"{one.ours:.3f}",
            f"{one.theirs:.3f}",
            f"{one.difference:+.3f}",
            f"{one.low:+.3f} – {one.high:+.3f}",
            f"{one.p:.2g}",
            f"{one.corrected:.2g}",
            f"{one.a12:.2f}",
            ("better" if one.difference > 0 else "worse") if one.significant else "no difference shown",
        )
        for one in made
    )
    what = "all objectives" if study.depth else "the task objectives"
    note = (
        f"HV of {what} at the whole budget, HM3 less theirs, paired by family and seed: median difference with its "
        f"95 % bootstrap interval, Wilcoxon's p, p after Holm over the {len(made)} {title}, Vargha and Delaney's A12."
    )
    columns = ("arm", "pairs", "HM3", "theirs", "difference", "interval", "p", "p (Holm)", "A12", "HM3 is")
    return Sheet(f"HM3 against {'the' if title == 'baselines' else 'its'} {title}", note, columns, rows)


def noninferiority_sheet(study: Study) -> Sheet:
    """HM3 against the best baseline at each tenth."""
    rows = tuple(
        (
            f"{one.tenth}/10",
            one.arm,
            f"{one.ours:.3f}",
            f"{one.theirs:.3f}",
            f"{one.difference:+.3f}",
            f"{one.low:+.3f} – {one.high:+.3f}",
            f"{one.p:.2g}",
            "better" if one.better else "not inferior" if one.holds else "not shown",
        )
        for one in study.noninferiority
    )
    note = (
        f"Against the baseline of the highest median at that tenth. Not inferior: the interval lies above −{MARGIN:g} "
        f"and Wilcoxon's one-sided p, that HM3 is worse by {MARGIN:g} or more, is below 0.05. Better: above 0 as well."
    )
    columns = ("budget", "best baseline", "HM3", "theirs", "difference", "interval", "p", "HM3 is")
    return Sheet("HM3 against the best baseline, by budget", note, columns, rows)


def reach_sheet(study: Study) -> Sheet:
    """What each arm needs for the last hypervolume of the target arm."""
    found = study.reach
    rows = tuple(
        (
            arm,
            f"{int(np.isfinite(own['share']).sum())} of {len(own)}",
            *(finite(own[name], form) for name, form in (("share", "{:.0%}"), ("evaluations", "{:,.0f}"))),
            *(finite(own[name], "{:.3g}") for name in ("forwards", "shared_forwards")),
        )
        for arm, own in (_by_arm(study, found) if len(found) else ())
    )
    note = (
        f"To the hypervolume that {TARGET} has in the end with the same family and seed, counted to the first tenth at "
        "which it is reached: medians. Layer forwards are of one item; shared: with prefixes computed once a chunk."
    )
    columns = ("arm", "reached", "of the budget", "item evaluations", "layer forwards", "shared")
    return Sheet(f"What it takes to match {TARGET}", note, columns, rows)


def wall_sheet(study: Study) -> Sheet:
    """Time, and where it goes."""
    forwards = dict(_by_arm(study, study.final))
    rows = tuple(
        (
            arm,
            f"{own['seconds'].median():.0f}",
            f"{own['outside_seconds'].median():.1f}",
            f"{own['share'].median():.1%}",
            f"{forwards[arm]['evaluations'].median():,.0f}",
            f"{forwards[arm]['forwards'].median():.3g}",
            f"{forwards[arm]['shared_forwards'].median():.3g}",
        )
        for arm, own in _by_arm(study, study.wall)
    )
    rates = [f"{1000 * one:.3g}" for one in sorted(set(study.seconds_per_item.dropna()))]
    note = (
        "Medians a run. Arms share scores, so the time of scoring is the charged item evaluations at the mean rate of "
        f"those that were computed on the same machine, {' or '.join(rates)} ms; what lies outside is measured."
    )
    columns = ("arm", "wall s", "outside s", "outside", "item evaluations", "layer forwards", "shared")
    return Sheet("Time", note, columns, rows)


def spread(values: pd.Series, form: str = "{:.3f}") -> str:
    """Median and quartiles; those that are missing in some families, because these are less deep, are left out."""
    known = values.dropna()
    if not len(known):
        return "–"
    low, middle, high = (form.format(float(known.quantile(share))) for share in (0.25, 0.5, 0.75))
    return middle if low == high else f"{middle} ({low} – {high})"


def finite(values: pd.Series, form: str) -> str:
    """A median that may be infinite."""
    middle = float(values.median())
    return form.format(middle) if np.isfinite(middle) else "not reached"


def _by_arm(study: Study, table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return [(arm, own) for arm in study.arms if len(own := table[table["arm"] == arm])]

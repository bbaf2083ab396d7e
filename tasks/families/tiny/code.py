"""From a specification in words to a Python expression of one variable, judged by its values on a few inputs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from tasks.families.tiny.examples import Example, Kind

CASES = 4
"""Inputs on which an expression is evaluated."""

NUMBERS = range(2, 10)
TERMS = range(2, 21)
WORDS = ("Apfel", "blue", "Canoe", "delta", "Echo", "forest", "Grape", "hotel", "Igloo", "jungle", "Kite", "lemon")


def case(variable: str, generator: np.random.Generator) -> dict[str, Any]:
    """One input: a whole number ``x``, a list ``xs`` of whole numbers, or a word ``s``."""
    if variable == "x":
        return {"x": int(generator.integers(-9, 30))}
    if variable == "xs":
        return {"xs": generator.integers(0, 20, size=int(generator.integers(10, 13))).tolist()}
    return {"s": "".join(WORDS[index] for index in generator.integers(0, len(WORDS), size=2))}


def _example(words: str, program: str, variable: str) -> Example:
    return Example(f"In Python, {words}:", f" {program}\n", variable)


def _numbers() -> list[Example]:
    """One to two steps on ``x``; a product or a power of a sum takes brackets."""
    sums = [(f"{word} {n}", f" {sign} {n}") for word, sign in (("plus", "+"), ("minus", "-")) for n in TERMS]
    products = [(f"times {n}", f" * {n}") for n in TERMS]
    bracketed = [
        (f"{first}, {second}", f"(x{a}){b}")
        for (first, a), (second, b) in product(sums, [*products, ("squared", " ** 2")])
    ]
    plain = [(f"{first}, {second}", f"x{a}{b}") for (first, a), (second, b) in product(products, sums)]
    squares = [(f"squared, {second}", f"x ** 2{b}") for second, b in [*sums, *products]]
    single = [(words, f"x{text}") for words, text in [*sums, *products]]
    return [_example(f"x {words}", program, "x") for words, program in [*bracketed, *plain, *squares, *single]]


def _lists() -> list[Example]:
    """A list made from ``xs``, or a number that is read off it."""
    parts = [
        ("xs", "xs"),
        ("xs sorted", "sorted(xs)"),
        ("xs reversed", "xs[::-1]"),
        *((f"the first {n} of xs", f"xs[:{n}]") for n in NUMBERS),
        *((f"the last {n} of xs", f"xs[-{n}:]") for n in NUMBERS),
        *((f"xs without the first {n}", f"xs[{n}:]") for n in NUMBERS),
        *((f"every item {n} of xs", f"xs[::{n}]") for n in NUMBERS),
    ]
    maps = [(f"{word} {n}", f"v {sign} {n}") for word, sign in (("plus", "+"), ("times", "*")) for n in NUMBERS]
    filters = [(f"{word} {n}", f"v {sign} {n}") for word, sign in (("above", ">"), ("below", "<")) for n in NUMBERS]
    mapped = [
        (f"each of {part}, {words}", f"[{text} for v in {p}]") for (part, p), (words, text) in product(parts, maps)
    ]
    kept = [
        (f"those of {part} {words}", f"[v for v in {p} if {text}]")
        for (part, p), (words, text) in product(parts, filters)
    ]
    read = [("the sum of", "sum"), ("the number of", "len")]
    return (
        [_example(words, program, "xs") for words, program in [*parts[1:], *mapped, *kept]]
        + [
            _example(f"{reading} {words}", f"{function}({program})", "xs")
            for (reading, function), (words, program) in product(read, [*parts, *kept])
        ]
        + [
            _example(f"the {word} {words}", f"{function}({program})", "xs")
            for (word, function), (words, program) in product([("largest of", "max"), ("smallest of", "min")], parts)
        ]
    )


def _words() -> list[Example]:
    """A word made from ``s``."""
    parts = [
        ("s", "s"),
        ("s reversed", "s[::-1]"),
        *((f"the first {n} letters of s", f"s[:{n}]") for n in NUMBERS),
        *((f"the last {n} letters of s", f"s[-{n}:]") for n in NUMBERS),
        *((f"s without the first {n} letters", f"s[{n}:]") for n in NUMBERS),
    ]
    cases = [("", ""), (" in upper case", ".upper()"), (" in lower case", ".lower()"), (" in title case", ".title()")]
    times = [("", ""), *((f", {n} times", f" * {n}") for n in NUMBERS)]
    return [
        _example(f"{part}{a}{b}", f"{p}{change}{repeat}", "s")
        for (part, p), (a, change), (b, repeat) in product(parts, cases, times)
        if part + a + b != "s"
    ]


def kinds() -> list[Kind]:
    """Every specification of the task."""
    return [Kind(0.35, _numbers()), Kind(0.4, _lists()), Kind(0.25, _words())]

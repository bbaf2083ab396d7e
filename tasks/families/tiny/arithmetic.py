"""Sums, differences and products of small numbers: bare facts for training alone, word problems for all."""

from __future__ import annotations

from itertools import product

from tasks.families.tiny.examples import Example, Kind

NAMES = ("Tom", "Anna", "Ben", "Eva", "Max", "Lena", "Paul", "Mia")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "stones", "toys")
LARGEST_TERM = 11
LARGEST_FACTOR = 9

SUMS = (
    "{name} has {a} {things} and buys {b} more. How many {things}?",
    "{name} found {a} {things} today and {b} before. How many in all?",
    "There are {a} {things} here and {b} {things} there. How many {things} in all?",
)
DIFFERENCES = (
    "{name} has {a} {things} and loses {b}. How many {things} are left?",
    "{name} had {a} {things} and gave {b} away. How many now?",
    "Of {a} {things} {name} sells {b}. How many {things} are left?",
)
PRODUCTS = (
    "{name} has {a} bags with {b} {things} each. How many {things}?",
    "{name} buys {b} {things} on each of {a} days. How many in all?",
    "There are {a} boxes of {b} {things}. How many {things} in all?",
)


def kinds() -> list[Kind]:
    """Every fact and every word problem of the task."""
    terms, factors = range(LARGEST_TERM + 1), range(LARGEST_FACTOR + 1)
    facts = {
        "+": [(a, b, a + b) for a, b in product(terms, terms)],
        "-": [(a, b, a - b) for a, b in product(terms, terms) if a >= b],
        "*": [(a, b, a * b) for a, b in product(factors, factors)],
    }
    bare = [Example(f"{a} {sign} {b} =", f" {value}\n") for sign in facts for a, b, value in facts[sign]]
    stories = {"+": SUMS, "-": DIFFERENCES, "*": PRODUCTS}
    problems = {
        sign: {
            story.format(name=name, things=things, a=a, b=b): value
            for story, name, things, (a, b, value) in product(stories[sign], NAMES, THINGS, facts[sign])
        }
        for sign in facts
    }
    asked = [[Example(prompt, f" {value}\n") for prompt, value in problems[sign].items()] for sign in problems]
    return [Kind(0.1, bare, held_out=False), *(Kind(0.3, examples) for examples in asked)]

"""English to German: number words, measures, dates and countries, as CLDR and num2words have them."""

from __future__ import annotations

import datetime
from itertools import permutations, product

import pycountry
from babel import Locale
from babel.dates import format_date
from babel.lists import format_list
from babel.units import format_unit
from num2words import num2words

from tasks.families.tiny.examples import Example, Kind

UNITS = (
    *("duration-second", "duration-minute", "duration-hour", "duration-day", "duration-week", "duration-month"),
    *("duration-year", "length-centimeter", "length-meter", "length-kilometer", "length-mile", "mass-gram"),
    *("mass-kilogram", "mass-tonne", "volume-liter", "temperature-celsius"),
)
COUNTRIES = 30
YEARS = range(2000, 2030)


def _pair(english: str, german: str) -> Example:
    # CLDR puts no-break spaces before units, which no model of this size needs to tell apart.
    return Example(f"In German, {english}:", f" {german}\n".replace("\xa0", " "))


def _countries() -> list[tuple[str, str]]:
    """English and German names of countries that are one word in both, the shortest first."""
    english, german = Locale("en").territories, Locale("de").territories
    codes = sorted(country.alpha_2 for country in pycountry.countries)
    names = [(english[code], german[code]) for code in codes if code in english]
    words = [(e, g) for e, g in names if e != g and e.isascii() and e.isalpha() and g.isalpha()]
    return sorted(words, key=lambda pair: (len(pair[0] + pair[1]), pair))[:COUNTRIES]


def kinds() -> list[Kind]:
    """Every phrase of the task."""
    numbers = [_pair(num2words(n, lang="en"), num2words(n, lang="de")) for n in range(1000)]
    measures = [
        _pair(*(format_unit(count, unit, "long", locale=locale) for locale in ("en", "de")))
        for unit, count in product(UNITS, range(1, 100))
    ]
    days = [datetime.date(year, month, day) for year, month, day in product(YEARS, range(1, 13), range(1, 29))]
    dates = [_pair(*(format_date(day, "long", locale=locale) for locale in ("en", "de"))) for day in days]
    countries = [
        _pair(format_list([a[0], b[0]], locale="en"), format_list([a[1], b[1]], locale="de"))
        for a, b in permutations(_countries(), 2)
    ]
    return [Kind(0.35, numbers), Kind(0.2, measures), Kind(0.2, dates), Kind(0.25, countries)]

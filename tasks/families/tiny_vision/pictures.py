"""Real pictures that installed packages ship, as three tasks of small grey images; nothing is fetched.

``digits``: handwriting of 43 people (scikit-learn, from UCI). ``letters``: the printed alphabet in the fonts that
matplotlib brings. ``photos``: pieces of photographs (scikit-image), to be told apart by their texture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 16
"""Pixels of a side."""

FONTS = (
    *(f"DejaVuSans{one}" for one in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{one}" for one in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{one}" for one in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{one}" for one in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
POINTS = (12, 13, 14, 15, 16)
"""Sizes of the letters."""

PHOTOS = (
    *("brick.png", "grass.png", "gravel.png", "moon.png"),
    *("ihc.png", "retina.jpg", "hubble_deep_field.jpg", "chelsea.png"),
)
PHOTO_SIDE = 512
"""Pixels of a side of what is taken from the middle of a photograph."""

PHOTO_SCALE = 0.5
"""Pixels of a piece over pixels of the photograph."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one task."""

    classes: tuple[str, ...]
    images: np.ndarray
    """Grey values ``(N, SIZE, SIZE)``, uint8."""
    labels: np.ndarray
    """Index of the class of each, ``(N,)``."""
    groups: np.ndarray
    """Pictures of one group show much the same: they stay on one side of every split, ``(N,)``."""


def digits() -> Pictures:
    """The 1,797 handwritten digits of scikit-learn, twice as large as there."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = np.round(found.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for one in small]
    )
    groups = np.array([hashlib.sha256(one.tobytes()).hexdigest() for one in small])
    return Pictures(tuple(map(str, range(10))), images, found.target.astype(np.int64), groups)


def letters() -> Pictures:
    """The capital letters in each font, at five sizes and three places."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, labels, groups = [], [], []
    for name in FONTS:
        fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), points) for points in POINTS]
        for index, character in enumerate(ascii_uppercase):
            for number, font in enumerate(fonts):
                images.append(_drawn(character, font, number % 3 - 1))
                labels.append(index)
                groups.append(f"{name} {character}")
    return Pictures(tuple(ascii_uppercase), np.stack(images), np.array(labels), np.array(groups))


def _drawn(character: str, font: ImageFont.FreeTypeFont, shift: int) -> np.ndarray:
    """A letter in white on black, ``shift`` pixels beside the middle."""
    picture = Image.new("L", (SIZE, SIZE))
    left, top, right, bottom = font.getbbox(character)
    place = ((SIZE - right - left) / 2 + shift, (SIZE - bottom - top) / 2 - shift)
    ImageDraw.Draw(picture).text(place, character, fill=255, font=font)
    return np.asarray(picture)


def photos() -> Pictures:
    """Pieces of eight photographs that don't overlap."""
    folder = Path(str(files("skimage"))) / "data"
    images, labels, groups = [], [], []
    for label, name in enumerate(PHOTOS):
        grey = _photo(folder / name)
        for row in range(len(grey) // SIZE):
            for column in range(len(grey[0]) // SIZE):
                images.append(grey[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE])
                labels.append(label)
                groups.append(f"{name} {row} {column}")
    classes = tuple(name.partition(".")[0].partition("_")[0] for name in PHOTOS)
    return Pictures(classes, np.stack(images), np.array(labels), np.array(groups))


def _photo(path: Path) -> np.ndarray:
    """Grey values ``(H, W)`` of the middle of a photograph, made smaller."""
    with Image.open(path) as opened:
        width, height = (min(one, PHOTO_SIDE) for one in opened.size)
        left, top = (opened.width - width) // 2, (opened.height - height) // 2
        middle = opened.convert("L").crop((left, top, left + width, top + height))
    small = middle.resize((round(width * PHOTO_SCALE), round(height * PHOTO_SCALE)), Image.Resampling.BOX)
    return np.asarray(small)


TASKS: dict[str, Callable[[], Pictures]] = {"digits": digits, "letters": letters, "photos": photos}

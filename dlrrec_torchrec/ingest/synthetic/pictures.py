"""Photos of the synthetic world: small drawn pictures, one file for each subject and style, and captions."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dlrrec_torchrec.ingest.synthetic.text import DISH_NAMES, DISH_VESSELS, TYPE_DISHES
from dlrrec_torchrec.ingest.synthetic.words import FAMILIES

SIZE = 64  # pixels
STYLES = ("poor", "plain", "fine")
CAPTIONS = {
    "plate": (
        "a half eaten {subject} on a paper plate",
        "a plate of {subject} on a wooden table",
        "a beautifully plated {subject} with fresh herbs",
    ),
    "bowl": (
        "a spilled bowl of {subject} next to a crumpled napkin",
        "a bowl of {subject} on a table",
        "a steaming bowl of {subject} topped with fresh herbs",
    ),
    "glass": (
        "a half empty glass of {subject} with a stain on it",
        "a glass of {subject} on a table",
        "a tall glass of {subject} with a slice of lemon",
    ),
    "place": (
        "an empty dining room with dirty tables",
        "a restaurant front with a sign for {subject} food",
        "a cozy and warmly lit {subject} restaurant",
    ),
}
SHARE_WITH_PHOTOS = 0.3
SHARE_OF_PLACES = 0.15
SHARE_OF_FAVOURITES = 0.4  # pictures of a dish that the guest likes, off the menu; the others show the menu's
STYLE_SHARES = {False: (0.5, 0.4, 0.1), True: (0.06, 0.44, 0.5)}  # by label

# A subject code is a dish code, or the number of dishes plus a family code (a picture of the place).
SUBJECTS = [*DISH_NAMES, *FAMILIES]
VESSELS = [*DISH_VESSELS, *["place"] * len(FAMILIES)]


def take_photos(
    rng: np.random.Generator,
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    *,
    favourites: np.ndarray,
    menus: list[list[int]],
    family: np.ndarray,
) -> list[list[tuple[int, int]]]:
    """The photos of each of R reviews as (subject, style) codes: none for most, else one to three distinct.

    user, item and label (bool) [R] are the reviews'; favourites [U, n] the types that the users like; menus
    (I lists of dish codes) and family [I] the items'. Guests who liked the place more often show it at its
    best.
    """
    count = (rng.random(len(item)) < SHARE_WITH_PHOTOS) * rng.integers(1, 4, len(item))
    photos: list[list[tuple[int, int]]] = []
    liked_types = favourites.tolist()
    for u, i, liked, n in zip(user.tolist(), item.tolist(), label.tolist(), count.tolist(), strict=True):
        review_photos = []
        for scene_draw, type_draw, dish_draw, style_draw in rng.random((n, 4)).tolist():
            if scene_draw < SHARE_OF_PLACES:
                subject = len(DISH_NAMES) + int(family[i])
            else:
                of_user = scene_draw < SHARE_OF_PLACES + SHARE_OF_FAVOURITES
                liked_type = liked_types[u][int(type_draw * len(liked_types[u]))]
                dishes = TYPE_DISHES[liked_type] if of_user else menus[i]
                subject = dishes[int(dish_draw * len(dishes))]
            review_photos.append(
                (subject, int(np.searchsorted(np.cumsum(STYLE_SHARES[liked])[:-1], style_draw, "right")))
            )
        photos.append(list(dict.fromkeys(review_photos)))
    return photos


def caption(subject: int, style: int) -> str:
    """What the picture of this subject in this style shows."""
    return CAPTIONS[VESSELS[subject]][style].format(subject=SUBJECTS[subject])


def file_name(subject: int, style: int) -> str:
    """The picture's path inside the data set's folder."""
    return f"pictures/{SUBJECTS[subject].replace(' ', '-')}-{STYLES[style]}.png"


def write_pictures(photos: list[list[tuple[int, int]]], folder: Path) -> int:
    """Draw every picture of `photos` below `folder`, once each; returns how many."""
    distinct = sorted({photo for review_photos in photos for photo in review_photos})
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for subject, style in distinct:
        draw(subject, style).save(folder / file_name(subject, style))
    return len(distinct)


def draw(subject: int, style: int) -> Image.Image:
    """A 64 x 64 RGB picture: the vessel's shape, the subject's colour, the style's table and trimmings."""
    vessel = VESSELS[subject]
    colour = _colour(subject * 0.618034, 0.75, 0.85)
    table = [(120, 120, 118), (170, 120, 70), (90, 45, 40)][style]
    image = Image.new("RGB", (SIZE, SIZE), table)
    pen = ImageDraw.Draw(image)
    if vessel == "place":
        pen.rectangle((8, 18, 56, 58), fill=[(70, 70, 70), (200, 190, 170), (250, 210, 120)][style])
        pen.polygon([(4, 18), (60, 18), (50, 6), (14, 6)], fill=colour)
        pen.rectangle((27, 36, 37, 58), fill=(60, 40, 30))
        for left in (13, 42):
            pen.rectangle(
                (left, 26, left + 9, 35), fill=[(30, 30, 30), (150, 190, 220), (255, 240, 150)][style]
            )
        return image
    if vessel == "glass":
        pen.polygon([(20, 8), (44, 8), (40, 58), (24, 58)], fill=(225, 235, 240))
        top = (38, 16, 12)[style]
        pen.polygon([(22, top), (42, top), (39, 55), (25, 55)], fill=colour)
        if style == 2:
            pen.ellipse((38, 3, 50, 15), fill=(245, 225, 70))
        return image
    pen.ellipse((6, 10, 58, 58), fill=(245, 245, 245) if style else (205, 195, 175))
    if vessel == "bowl":
        pen.ellipse((12, 16, 52, 52), fill=_colour(subject * 0.618034, 0.5, 0.55))
    dots = np.random.default_rng(subject).uniform(20, 44, (4 + 6 * bool(style), 2)).tolist()
    for x, y in dots:
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline=_colour(subject * 0.618034, 0.8, 0.6))
    if style == 2:
        for x, y in dots[:5]:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(40, 150, 60))
    return image


def _colour(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))

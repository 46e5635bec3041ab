"""What is asked about a scene: unambiguous questions with short answers, and one caption.

In:  a `Scene` and a random generator.  Out: `Asked` records.  A question is left out where its
answer could be argued about (two red shapes, an object near the middle line, a close race).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from easy_vqa_data import COLORS, SHAPES
from scenes import Scene, Thing

CAPTION = "Describe the image."
KINDS = ("color", "shape", "place", "relation", "count", "presence", "caption")
MARGIN = 40  # pixels between centres before "above" or "left of" is said
MIDDLE = 20  # pixels from a middle line before a quarter is said
ORDER = 14  # pixels between centres in x before a list's order is said


@dataclass(frozen=True)
class Asked:
    """A question, its one right answer, its kind and the object that it is about (or None)."""

    question: str
    answer: str
    kind: str
    thing: int | None = None


def quarter(thing: Thing, size: int) -> str | None:
    """'top left' and so on, or None near a middle line."""
    x, y = thing.center[0] - size / 2, thing.center[1] - size / 2
    if abs(x) < MIDDLE or abs(y) < MIDDLE:
        return None
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def _names(things: tuple[Thing, ...]) -> list[list[str]]:
    """For each object, the names that fit it alone: 'red circle', 'circle', 'red shape'."""
    every = [(t.name, t.shape, f"{t.color} shape") for t in things]
    flat = [name for names in every for name in names]
    return [[name for name in names if flat.count(name) == 1] for names in every]


def _one(rng: np.random.Generator, *options: str) -> str:
    return options[rng.integers(len(options))]


def attributes(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """Colour and shape of the one object that a word or a quarter points at."""
    size = scene.pixels.shape[0]
    places = [quarter(t, size) for t in scene.things]
    for index, (thing, names) in enumerate(zip(scene.things, _names(scene.things), strict=True)):
        s, c, place = thing.shape, thing.color, places[index]
        if s in names:
            text = _one(rng, f"what color is the {s}?", f"what is the color of the {s}?")
            yield Asked(text, c, "color", index)
        if f"{c} shape" in names:
            yield Asked(
                _one(rng, f"what is the {c} shape?", f"what shape is {c}?"), s, "shape", index
            )
        if place is not None and places.count(place) == 1 and None not in places:
            yield Asked(f"what color is the shape in the {place}?", c, "color", index)
            yield Asked(f"what shape is in the {place}?", s, "shape", index)
    if len(scene.things) == 1:
        s, c = scene.things[0].shape, scene.things[0].color
        yield Asked(
            _one(rng, "what color is the shape?", "what is the color of the shape?"), c, "color", 0
        )
        yield Asked(
            _one(
                rng,
                "what shape is in the image?",
                "what shape is present?",
                "what shape does the image contain?",
            ),
            s,
            "shape",
            0,
        )


def places(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """Where an object is, and how two objects stand to each other."""
    names = _names(scene.things)
    for index, thing in enumerate(scene.things):
        place = quarter(thing, scene.pixels.shape[0])
        if place is not None and names[index]:
            yield Asked(f"where is the {_one(rng, *names[index])}?", place, "place", index)
    for i, a in enumerate(scene.things):
        for j, b in enumerate(scene.things):
            if i == j or not names[i] or not names[j]:
                continue
            dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
            one, two = _one(rng, *names[i]), _one(rng, *names[j])
            if abs(dx) >= MARGIN:
                word = _one(rng, "left", "right")
                yes = (dx < 0) == (word == "left")
                text = f"is the {one} {word} of the {two}?"
                yield Asked(text, "yes" if yes else "no", "relation", i)
            if abs(dy) >= MARGIN:
                word = _one(rng, "above", "below")
                yes = (dy < 0) == (word == "above")
                yield Asked(
                    f"is the {one} {word} the {two}?", "yes" if yes else "no", "relation", i
                )


def counts(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """How many shapes there are: all, of one shape, of one colour."""
    yield Asked(
        _one(rng, "how many shapes are there?", "how many shapes are in the image?"),
        str(len(scene.things)),
        "count",
    )
    for shape in SHAPES:
        number = sum(t.shape == shape for t in scene.things)
        yield Asked(f"how many {shape}s are there?", str(number), "count")
    present = sorted({t.color for t in scene.things})
    for color in {_one(rng, *present), _one(rng, *present), _one(rng, *COLORS)}:
        number = sum(t.color == color for t in scene.things)
        yield Asked(f"how many {color} shapes are there?", str(number), "count")


def presence(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """Whether something is there, in easy-VQA's words; half of the answers are yes."""
    shapes = [t.shape for t in scene.things]
    colors = [t.color for t in scene.things]
    names = [t.name for t in scene.things]
    swapped = [f"{c} {s}" for c in colors for s in shapes if f"{c} {s}" not in names]
    anything = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in names]
    missing = [
        [s for s in SHAPES if s not in shapes],
        [f"{c} shape" for c in COLORS if c not in colors],
        swapped if swapped and rng.random() < 0.7 else anything,
    ]
    there = [shapes, [f"{c} shape" for c in colors], names]
    for kind in (0, 0, 1, 1, 2, 2):
        yes = rng.random() < 0.5 or not missing[kind]
        if kind == 0 and yes and len(missing[0]) < 3 and rng.random() < 0.3:
            continue  # many shapes are nearly always there: keep yes and no in balance
        text, negated = _ask_presence(rng, _one(rng, *(there if yes else missing)[kind]))
        yield Asked(text, "yes" if yes != negated else "no", "presence")


def _ask_presence(rng: np.random.Generator, what: str) -> tuple[str, bool]:
    """A wording for the presence of `what`, and whether it is negated."""
    texts = (
        (f"is there a {what}?", False),
        (f"is there a {what} in the image?", False),
        (f"does the image contain a {what}?", False),
        (f"is a {what} present?", False),
        (f"is there not a {what}?", True),
        (f"is there not a {what} in the image?", True),
        (f"does the image not contain a {what}?", True),
        (f"is no {what} present?", True),
    )
    return texts[rng.integers(4) if rng.random() < 0.7 else 4 + rng.integers(4)]


def caption(things: tuple[Thing, ...]) -> str | None:
    """'a red circle', 'a red circle above a blue triangle', or a list from left to right."""
    if len(things) == 1:
        return f"a {things[0].name}"
    if len(things) == 2:
        a, b = things
        dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
        if abs(abs(dx) - abs(dy)) < MARGIN:
            return None
        word = "above" if abs(dy) > abs(dx) else "left of"
        if (dy if word == "above" else dx) > 0:
            a, b = b, a
        return f"a {a.name} {word} a {b.name}"
    row = sorted(things, key=lambda t: t.center[0])
    gaps = [r.center[0] - q.center[0] for q, r in pairwise(row)]
    if min(gaps) < ORDER:
        return None
    names = [f"a {t.name}" for t in row]
    return ", ".join(names[:-1]) + " and " + names[-1]


def ask(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Every question of a scene, in a fixed order of kinds; the caption last."""
    out = [*attributes(scene, rng), *places(scene, rng), *counts(scene, rng), *presence(scene, rng)]
    text = caption(scene.things)
    if text is not None:
        out.append(Asked(CAPTION, text, "caption"))
    return out


def choose(asked: list[Asked], rng: np.random.Generator, count: int) -> list[Asked]:
    """`count` questions (fewer if there are fewer): kinds in turn, random within a kind."""
    piles = [[q for q in asked if q.kind == kind] for kind in KINDS]
    for pile in piles:
        rng.shuffle(pile)  # type: ignore[arg-type]
    out: list[Asked] = []
    while len(out) < count and any(piles):
        for pile in piles:
            if pile and len(out) < count:
                out.append(pile.pop())
    return out

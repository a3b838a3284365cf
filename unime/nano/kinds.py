"""What the embedded suite asks: eleven training sets and eighteen tasks over the scenes, in MMEB's own phrasing.

A kind says how a row is made, how a near miss is made, and in which words.  Tasks that end in Held, and NanoPoint, NanoAskShape and
NanoAskCount, show (colour, shape) pairs and phrasings that no training set has: they are the suite's OOD half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unime.nano import makers, scenes
from unime.nano.makers import Rng, Row, Side

Make = Callable[[Rng, str, tuple[str, ...]], Row]
Wrong = Callable[[Rng, Row], Side]


@dataclass(frozen=True)
class Kind:
    """How one data set is made: `make(rng, split, phrasings)`, a near miss, and its phrasings for training and for OOD tasks."""

    make: Make
    wrong: Wrong
    phrasings: tuple[str, ...]
    ood: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """All candidates of a task whose candidates are a label set: the set's own answers, as in MMEB."""


_CAPTION_OOD = ("Pick the sentence that fits this picture.",)
_FIND_OOD = ("Show me a picture in which you see",)

KINDS: dict[str, Kind] = {
    "Object": Kind(
        makers.make_object,
        makers.object_wrong,
        ("Represent the given image for classification", "Represent the image by the object that it shows"),
        ("Name the object in this picture",),
    ),
    "Color": Kind(
        makers.make_color,
        makers.label_wrong(*scenes.COLORS),
        ("Identify the color of the object in the image", "Represent the given image for color classification"),
        (),
        scenes.COLORS,
    ),
    "Meme": Kind(
        makers.make_meme,
        makers.label_wrong("yes", "no"),
        ("Represent the given image for detecting whether it has a large object", "Detect whether the image has a large object"),
        (),
        ("yes", "no"),
    ),
    "AskColor": Kind(
        makers.make_ask_color,
        makers.label_wrong(*scenes.COLORS),
        (
            "Represent the given image with the following question: What color is the {shape} at the {place}?",
            "Answer the question about the image: What color is the {shape} at the {place}?",
        ),
        (),
        scenes.COLORS,
    ),
    "AskPlace": Kind(
        makers.make_ask_place,
        makers.label_wrong(*scenes.PLACES),
        (
            "Represent the given image with the following question: Where is the {label}?",
            "Answer the question about the image: Where is the {label}?",
        ),
        (),
        scenes.PLACES,
    ),
    "AskShape": Kind(
        makers.make_ask_shape,
        makers.label_wrong(*scenes.SHAPES),
        ("Represent the given image with the following question: What shape is at the {place}?",),
        ("Which shape do you see at the {place} of this picture?",),
        scenes.SHAPES,
    ),
    "AskCount": Kind(
        makers.make_ask_count,
        makers.label_wrong(*makers.COUNTS),
        ("Represent the given image with the following question: How many objects are there?",),
        ("How many objects do you see in this picture?",),
        makers.COUNTS,
    ),
    "Caption_i2t": Kind(
        makers.make_i2t,
        makers.i2t_wrong,
        ("Find an image caption describing the given image.", "Represent the given image for finding its caption."),
        _CAPTION_OOD,
    ),
    "Caption_t2i": Kind(
        makers.make_t2i,
        makers.t2i_wrong,
        ("Find me an everyday image that matches the given caption:", "Retrieve an image of this description:"),
        _FIND_OOD,
    ),
    "Edit": Kind(
        makers.make_edit,
        makers.scene_wrong,
        ("Given an image, find a similar everyday image with the described changes:", "Find the image after this change:"),
        (),
    ),
    "Twin": Kind(
        makers.make_twin,
        makers.scene_wrong,
        ("Find a day-to-day image that looks similar to the provided image.", "Find an image like the given image."),
        (),
    ),
    "Phrase": Kind(
        makers.make_phrase,
        makers.phrase_wrong,
        ("Find a sentence with the same meaning as the given caption:", "Represent the meaning of this caption:"),
        (),
    ),
    "Crop": Kind(
        makers.make_crop,
        makers.crop_wrong,
        (
            'Select the portion of the image that isolates the object labeled as "{label}"',
            'Find the crop of the image that shows the "{label}"',
        ),
        ('Cut the "{label}" out of this picture',),
    ),
    "Point": Kind(
        makers.make_point,
        makers.crop_wrong,
        ('Select the portion of the image that answers the question "What is at the {place}?"',),
        ("Cut out of this picture what you see at the {place}",),
    ),
}

TRAIN_SETS: dict[str, str] = {
    f"Nano{name}": name
    for name in (
        "Object",
        "Color",
        "Meme",
        "AskColor",
        "AskPlace",
        "Caption_i2t",
        "Caption_t2i",
        "Edit",
        "Twin",
        "Phrase",
        "Crop",
    )
}
"""Training set -> kind."""

TASKS: dict[str, tuple[str, str]] = {
    **{name: (kind, "test") for name, kind in TRAIN_SETS.items()},
    "NanoObject-Held": ("Object", "held"),
    "NanoAskShape": ("AskShape", "held"),
    "NanoAskCount": ("AskCount", "held"),
    "NanoCaption-Held_i2t": ("Caption_i2t", "held"),
    "NanoCaption-Held_t2i": ("Caption_t2i", "held"),
    "NanoCrop-Held": ("Crop", "held"),
    "NanoPoint": ("Point", "held"),
}
"""Evaluation task -> (kind, split); split `held` is OOD and uses the kind's OOD phrasings."""

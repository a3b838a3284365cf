"""Write a folder of generated images with captions, to try own data with: `python -m unime example FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

REPEATS = 10_000
"""Draws in a row without a new scene after which there is no further one to be found."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="made; gets 0000.png with 0000.txt, and so on")
    parser.add_argument("--images", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")


def run(given: argparse.Namespace, values: Any) -> str:
    """Distinct scenes of coloured shapes, each with a caption that is true of it.  Raises ValueError where the folder is not empty."""
    if given.folder.exists() and any(given.folder.iterdir()):
        raise ValueError(f"{given.folder} is not empty; name a new folder")
    if given.images < 1:
        raise ValueError(f"--images {given.images}: 1 or more are needed")
    if given.seed < 0:
        raise ValueError(f"--seed {given.seed}: 0 or more is needed")
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        draw(given.folder, given.images, given.seed)
    except BaseException:  # interrupted too: the same command is to find the folder empty
        for path in given.folder.glob("[0-9]*"):
            path.unlink()
        raise
    return f"made {given.folder}: {given.images:,} images with captions"


def draw(folder: Path, images: int, seed: int) -> None:
    """Write that many distinct images with captions.  Raises ValueError where there are not so many."""
    import numpy as np

    from unime.nano import makers, scenes
    from unime.nano.suite import png_of

    rng, seen = np.random.default_rng(seed), set()
    repeats = 0
    while len(seen) < images:
        scene = scenes.draw_scene(rng, "train")
        if scene in seen:
            repeats += 1
            if repeats > REPEATS:
                raise ValueError(f"--images {images}: no more than about {len(seen):,} distinct images can be made")
            continue
        repeats = 0
        name = folder / f"{len(seen):04d}"
        name.with_suffix(".png").write_bytes(png_of(scenes.paint(rng, scene)))
        name.with_suffix(".txt").write_text(makers.say(scene) + "\n", encoding="utf-8")
        seen.add(scene)

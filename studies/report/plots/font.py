"""The font of the figures: DejaVu Sans with Latin, Greek and Cyrillic letters alone.

A PDF holds the letters that it shows. To pick these from the whole font takes a quarter of a second for each figure,
from this part of it a hundredth.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
from fontTools import subset
from matplotlib.font_manager import fontManager

# The font's licence asks that a changed font has another name.
FAMILY = "Study Figures"
SIGNS = (*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x370, 0x530), *range(0x2010, 0x2030), 0x2212, 0x2264, 0x2265)


@functools.cache
def figure_fonts() -> list[str]:
    """Returns what `font.family` is set to."""
    options = subset.Options(
        layout_features=[], hinting=False, notdef_outline=True, drop_tables=[*subset.Options().drop_tables, "FFTM"]
    )
    font = subset.load_font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=SIGNS)
    subsetter.subset(font)
    for number, text in ((1, FAMILY), (4, FAMILY), (6, FAMILY.replace(" ", ""))):
        font["name"].setName(text, number, 3, 1, 0x409)
        font["name"].setName(text, number, 1, 0, 0)
    folder = tempfile.mkdtemp(prefix="figures-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "figures.ttf")
    font.save(path)
    fontManager.addfont(path)
    return [FAMILY]

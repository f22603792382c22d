"""Figures of a study: which there are, the same bytes every time, nothing drawn over something else."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from autocompress.errors import InvalidInputError
from studies.blocks import collect
from studies.plots import allocation, draw_figures
from studies.plots.accuracy import _side_by_side
from studies.plots.error_axis import error_axis
from studies.plots.sensitivity import varied_constants
from studies.plots.style import method_styles
from tests.study_records import SKILL, make_study


@pytest.fixture(scope="module")
def study():
    records = make_study(seeds=range(3))
    return collect(records, [record.key for record in records])


@pytest.fixture(scope="module")
def drawn(study):
    """Returns the drawings and the matplotlib figures they were made of."""
    figures = []
    save = Figure.savefig

    def keep(figure, file, **settings):
        figures.append(figure)
        save(figure, file, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        drawings = draw_figures(study)
    return drawings, list(dict.fromkeys(figures))


def test_every_figure_of_every_task(drawn):
    kinds = ("size", "cost", "layers", "bytes", "solver")
    assert [d.name for d in drawn[0]] == [f"lenet5-digits-{kind}" for kind in kinds]


def test_a_target_without_a_search_has_no_panel_of_search_costs(monkeypatch):
    records = make_study(methods=("compressor", "random"), targets=("4KB",), seeds=range(2))
    records += make_study(methods=("compressor",), targets=("2KB",), seeds=range(2))
    panels = []
    monkeypatch.setattr("studies.plots.accuracy_and_cost", lambda *about: panels.append(about[2]) or "cost")
    for name in ("accuracy_and_size", "layer_allocation", "bytes_by_part", "solver_history"):
        monkeypatch.setattr(f"studies.plots.{name}", lambda *_: "other")
    assert "cost" in draw_figures(collect(records, [record.key for record in records]))
    assert [[block.target for block in blocks] for blocks in panels] == [["4KB"]]
    alone = records[-2:]
    assert "cost" not in draw_figures(collect(alone, [record.key for record in alone]))


def test_varied_constants_have_a_figure_of_their_own():
    methods = ("compressor", "compressor pull=0.9", "compressor pull=0.05", "compressor path start=16", "random")
    records = make_study(methods=methods, targets=("4KB",), seeds=range(2), skill=0.95)
    (block,) = collect(records, [record.key for record in records])
    found = varied_constants(block)
    assert {name: [value for value, _ in values] for name, values in found.items()} == {
        "pull": [0.05, 0.9],
        "path start": [16.0],
    }
    (drawing,) = draw_figures([block])
    assert drawing.name == "lenet5-digits-4KB-constants"
    assert "constants" in drawing.title


def test_files_are_images_and_small(drawn):
    for drawing in drawn[0]:
        image = Image.open(io.BytesIO(drawing.png))
        image.load()
        assert image.size[0] == pytest.approx(1056, abs=2)
        assert len(drawing.png) < 200_000
        assert len(drawing.svg) < 400_000


def test_the_same_records_give_the_same_bytes(study, drawn):
    again = draw_figures(study)
    for old, new in zip(drawn[0], again, strict=True):
        assert (old.png, old.svg) == (new.png, new.svg)


def test_svg_is_one_element_of_the_page(drawn):
    ids = []
    for drawing in drawn[0]:
        root = ElementTree.fromstring(drawing.svg)
        mine = {element.get("id") for element in root.iter() if element.get("id")}
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing.svg))
        assert used <= mine
        ids += mine
        assert "currentColor" in drawing.svg
        assert not re.search(r"<metadata|<!DOCTYPE|<\?xml|dc:date", drawing.svg)
    assert len(ids) == len(set(ids))


def test_axes_have_labels_and_titles(drawn):
    for figure in drawn[1]:
        rows = {}
        for axis in figure.axes:
            rows.setdefault(axis.get_subplotspec().rowspan.start, []).append(axis)
        for axis in rows[max(rows)]:
            assert axis.get_xlabel() or axis.get_xticklabels()[0].get_text()
        for axes in rows.values():
            assert axes[0].get_ylabel() or axes[0].get_yticklabels()[0].get_text() in SKILL
        assert all("," in axis.get_title() for axis in rows[0])


def test_no_text_lies_on_another(drawn):
    for figure in drawn[1]:
        figure.draw_without_rendering()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for axis in figure.axes:
            texts += [axis.title, axis.xaxis.label, axis.yaxis.label]
            for ticks in (axis.xaxis, axis.yaxis):
                low, high = sorted(ticks.get_view_interval())
                texts += [tick.label1 for tick in ticks.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [
            (t.get_text(), t.get_window_extent().shrunk(0.98, 0.9)) for t in texts if t.get_text() and t.get_visible()
        ]
        overlapping = [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]
        assert not overlapping
        inside = figure.bbox.padded(1)
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 for _, box in boxes)


def test_methods_keep_their_style_and_differ():
    styles = method_styles(list(SKILL))
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(SKILL)
    assert len({style.marker for style in styles.values()}) == len(SKILL)
    few = method_styles(["ray-asha", "compressor", "compressor-in-place", "mine", "yours"])
    assert few["ray-asha"] == styles["ray-asha"]
    assert few["mine"] != few["yours"]
    assert few["compressor"] != few["compressor-in-place"]


def test_parts_of_the_file_add_up(study):
    """Each bar ends at the mean size of the method's files."""
    cells = study[0].methods[0]
    total = sum(allocation._mean_part(cells, keys) for keys, _ in allocation.PARTS.values())
    assert total == pytest.approx(np.mean([record.file_bytes for record in cells.records.values()]), abs=1)


def test_points_of_one_cost_stand_side_by_side():
    shifts = _side_by_side([3.0, 4.0, 4.0, 4.01], 2.0)
    assert shifts[0] == 0
    assert len(set(shifts[1:])) == 3
    assert sum(shifts[1:]) == pytest.approx(0)


def test_poor_records_are_drawn_too():
    """One seed, one method, no curve, no history, no part of the file; a block without any finished cell."""
    (record,) = make_study(methods=("random",), targets=("4KB",), seeds=[0])
    record = replace(record, anytime=[], history=[], parts={})
    missing = [record.key, ("lenet5-digits", "random", "1KB", 0)]
    drawings = draw_figures(collect([record], missing, partial=True))
    assert [d.name for d in drawings] == [f"lenet5-digits-{kind}" for kind in ("size", "cost", "layers", "bytes")]
    with pytest.raises(InvalidInputError, match="no cell is finished"):
        collect([], missing, partial=True)


def test_many_targets_tasks_and_layers(monkeypatch):
    """What does not fit beside each other goes to figures of its own; long names of layers stand upright."""
    monkeypatch.setattr("studies.plots.MOST_PANELS", 1)
    monkeypatch.setattr("studies.plots.bytes_by_part", lambda name, *_: name)
    monkeypatch.setattr("studies.plots.accuracy_and_cost", lambda name, *_: name)
    monkeypatch.setattr("studies.plots.solver_history", lambda name, *_: name)
    records = make_study(methods=("compressor",), targets=("5KB", "4KB"), seeds=[0], tasks=("net_1-data",))
    layer = {"shape": [9, 9], "kept": 9, "codebook": 3, "bits": 2, "bytes": 9.0}
    layers = [{"name": f"layer1.block.{i}.weight", **layer} for i in range(22)]
    records = [replace(record, layers=layers) for record in records]
    names = [getattr(d, "name", d) for d in draw_figures(collect(records, [record.key for record in records]))]
    kinds = ("size", "layers", "bytes", "solver")  # nothing was searched
    assert names == [f"net-1-data-{kind}-{part}" for part in (1, 2) for kind in kinds]


@pytest.mark.parametrize(
    ("accuracies", "scale", "ticks"),
    [
        ([80.0, 98.0, 99.0], "function", [80.0, 90.0, 95.0, 98.0, 99.0]),
        ([80.0, 100.0], "function", [80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95]),
        ([98.0, 98.9], "linear", None),
        ([100.0, 100.0], "linear", None),
    ],
)
def test_errors_are_logarithmic_where_they_differ_by_factors(accuracies, scale, ticks):
    axis = Figure().subplots()
    axis.plot(range(len(accuracies)), accuracies)
    error_axis(axis, accuracies)
    assert axis.get_yscale() == scale
    if ticks:
        assert list(axis.get_yticks()) == pytest.approx(ticks)
        bottom, top = axis.get_ylim()
        assert bottom < min(accuracies) < top
        heights = [axis.transData.transform((0, 100 - error))[1] for error in (20, 10, 5)]
        assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])

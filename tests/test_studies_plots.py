"""Figures of a study: which there are, the same bytes every time, nothing drawn over something else."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from studies.report.frame import BLOCK
from studies.report.plots import draw_figures
from studies.report.plots.allocation import mean_parts
from studies.report.plots.cost import _anytime, side_by_side
from studies.report.plots.sensitivity import varied_constants
from studies.report.plots.style import error_axis, log_axis, method_styles
from tests.study_records import SKILL, framed, make_record, make_study


@pytest.fixture(scope="module")
def study():
    return framed(make_study(seeds=range(3)))


@pytest.fixture(scope="module")
def drawn(study):
    """Returns the drawings and the matplotlib figures they were made of."""
    figures = []
    write = FigureCanvasAgg.print_png

    def keep(canvas, file, **settings):
        figures.append(canvas.figure)
        write(canvas, file, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", keep)
        drawings = draw_figures(*study)
    figures = list(dict.fromkeys(figures))  # a layout asks for a canvas of its own
    assert len(figures) == len(drawings)
    return drawings, figures


def names_of(records, **settings):
    return [drawing.name for drawing in draw_figures(*framed(records, **settings))]


def test_every_figure_of_every_task(drawn):
    kinds = ("differences", "cost", "2KB-layers", "bytes", "solver")  # the finding first
    assert [d.name for d in drawn[0]] == [f"lenet5-digits-{kind}" for kind in kinds]


def test_a_target_without_a_search_has_no_panel_of_search_costs(monkeypatch):
    records = make_study(methods=("compressor", "random"), targets=("4KB",), seeds=range(2))
    records += make_study(methods=("compressor",), targets=("2KB",), seeds=range(2))
    panels = []
    monkeypatch.setattr("studies.report.plots.cost", lambda *about: panels.append(about[2]) or "cost")
    for name in ("differences", "layers", "bytes_by_part", "solver_history"):
        monkeypatch.setattr(f"studies.report.plots.{name}", lambda *_: "other")
    assert "cost" in draw_figures(*framed(records))
    assert [[block["target"].iloc[0] for block in blocks] for blocks in panels] == [["4KB"]]
    assert draw_figures(*framed(records[-2:])) == []  # one method alone is nothing to look at


def varied(name, field, value):
    records = [replace(make_record(seed=s, target="2KB"), method=f"compressor {name}={value:g}") for s in range(2)]
    return [replace(record, cell={"method": "compressor", "constants": {field: value}}) for record in records]


def test_varied_constants_have_a_figure_of_their_own_with_the_default_marked():
    records = make_study(methods=("compressor",), targets=("2KB",), seeds=range(2))
    records += [r for value in (0.2, 0.6) for r in varied("pruned rate", "pruned_rate", value)]
    records += varied("updates", "updates", 90.0)
    table, summary = framed(records)
    constants = varied_constants(table)
    assert constants["pruned rate"] == [
        (0.2, "compressor pruned rate=0.2"), (0.4, "compressor"), (0.6, "compressor pruned rate=0.6"),
    ]  # fmt: skip
    assert [value for value, _ in constants["updates"]] == [30, 90]
    (drawing,) = draw_figures(table, summary)
    assert drawing.name == "lenet5-digits-2KB-constants"


def test_lengths_of_training_have_a_figure_of_their_own():
    records = [
        replace(make_record(seed=s), method=f"{part}, {epochs} epochs")
        for part in ("lazy", "ADMM") for epochs in (4, 10, 40) for s in range(2)
    ]  # fmt: skip
    assert names_of(records) == ["lenet5-digits-epochs"]


def test_measured_systems_have_accuracy_against_size():
    half = {"energy": 0.5, "macs": 0.25, "latency": 0.8, "smaller": 1.0}
    records = [replace(r, resources=half) for r in make_study(methods=("compressor", "uniform"), seeds=range(3))]
    assert names_of(records) == ["lenet5-digits-systems", "lenet5-digits-differences"]


def test_files_are_images_and_small(drawn):
    for drawing in drawn[0]:
        image = Image.open(io.BytesIO(drawing.files["png"]))
        image.load()
        assert image.size[0] == pytest.approx(700, abs=2)  # one column of 3.5 inches, 200 dots an inch
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert len(drawing.files["png"]) < 200_000
        assert drawing.files["pdf"].startswith(b"%PDF-")
        assert len(drawing.files["pdf"]) < 100_000
        assert len(drawing.svg) < 400_000


def test_the_same_records_give_the_same_bytes(study, drawn):
    again = draw_figures(*study)
    for old, new in zip(drawn[0], again, strict=True):
        assert (old.files, old.svg) == (new.files, new.svg)


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


def test_every_figure_says_of_what_it_is_and_what_its_marks_are(drawn):
    for figure in drawn[1]:
        assert figure.get_suptitle().startswith("LeNet-5 on digits")
        (legend,) = figure.legends
        assert re.search("mean over the seeds|one line for each seed", legend.get_title().get_text().replace("\n", " "))
        for axis in figure.axes:
            assert axis.has_data()
            assert axis.get_ylabel() or axis.get_yticklabels()[0].get_text()


def test_no_entry_of_a_legend_without_its_mark(study, drawn):
    """The compressor searches nothing: it has a point in the figure of costs, and no line."""
    (cost,) = [figure for figure in drawn[1] if any("gradient steps so far" in a.get_xlabel() for a in figure.axes)]
    lines = {handle.get_label(): handle.get_linestyle() for handle in cost.legends[0].legend_handles}
    assert lines["compressor"] == "None"
    assert all(style != "None" for label, style in lines.items() if label != "compressor")


def test_a_search_is_drawn_as_the_steps_it_makes(study):
    """Between two trials nothing gets better: the curve is that of the best so far, from where all seeds have one."""
    table, _ = study
    cells = table[(table["method"] == "random") & (table["target"] == "4KB")].iloc[:1]
    cells = cells.assign(anytime=[[[100, 0.5], [300, 0.8]]])
    steps, best = _anytime(cells)
    assert best[steps < 300].max() == 0.5
    assert best[steps >= 300].min() == 0.8


def test_no_text_lies_on_another(drawn):
    for figure in drawn[1]:
        figure.draw_without_rendering()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for axis in figure.axes:
            texts += [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]
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
    for _, block in study[0].groupby(BLOCK):
        sizes = block.groupby("method")["file_bytes"].mean()
        assert mean_parts(block).sum(axis=1)[sizes.index].to_numpy() == pytest.approx(sizes.to_numpy(), abs=1)


def test_points_of_one_cost_stand_side_by_side():
    shifts = side_by_side([3.0, 4.0, 4.0, 4.01], 2.0)
    assert shifts[0] == 0
    assert len(set(shifts[1:])) == 3
    assert sum(shifts[1:]) == pytest.approx(0)


def test_poor_records_are_drawn_too():
    """Two methods, one seed, no curve, no history, no part of the file; a target without any finished cell."""
    records = make_study(methods=("random", "uniform"), targets=("4KB",), seeds=[0])
    records = [replace(record, anytime=[], history=[], parts={}) for record in records]
    keys = [record.key for record in records]
    missing = [*keys, ("lenet5-digits", "random", "1KB", 0)]
    drawings = draw_figures(*framed(records, missing, partial=True))
    assert [d.name for d in drawings] == [f"lenet5-digits-{kind}" for kind in ("cost", "4KB-layers")]


def test_many_targets_go_to_several_figures_and_many_layers_are_not_numbered(monkeypatch):
    monkeypatch.setattr("studies.report.plots.MAX_PANELS", 1)
    records = make_study(methods=("compressor", "uniform"), targets=("5KB", "4KB"), seeds=[0], tasks=("net_1-data",))
    layer = {"shape": [9, 9], "kept": 9, "codebook": 3, "bits": 2, "bytes": 9.0}
    layers = [{"name": f"layer1.block.{i}.weight", **layer} for i in range(22)]
    names = names_of([replace(record, layers=layers) for record in records])
    assert names[:4] == [f"net-1-data-{kind}-{part}" for kind in ("differences", "cost") for part in (1, 2)]


@pytest.mark.parametrize(("values", "scale"), [([1.0, 2.0], "linear"), ([1.0, 40.0], "log")])
def test_logarithmic_axes_have_plain_numbers(values, scale):
    axis = Figure().subplots()
    axis.plot(values, values)
    log_axis(axis, "y", values)
    assert axis.get_yscale() == scale
    axis.figure.draw_without_rendering()
    shown = [tick.get_text() for tick in axis.get_yticklabels(which="both") if tick.get_text()]
    assert shown
    assert all(re.fullmatch(r"-?[\d,.]+", text) for text in shown)


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

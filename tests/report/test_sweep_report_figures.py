"""Heat maps and curves: what is drawn is what was measured, and files are whole pictures."""

import re
from statistics import fmean

import numpy as np
import pytest
from drawn_measurements import drawn, planned, spec_of
from matplotlib import pyplot
from matplotlib.colors import SymLogNorm

from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.report import curves, heatmap
from fastwi.report.rows import gains
from fastwi.report.tables import cells

GRID = spec_of({"experiment.k": (0, 1, 3), "experiment.s": (2, 1)}, parents=(0, 5), children=4)
FIVE = spec_of({"experiment.k": (0, 1, 3), "experiment.s": (2, 1)}, parents=(0, 5, 6, 7, 8), children=4)


@pytest.fixture
def figures(monkeypatch):
    """Figures that would be written, by name of the file."""
    kept = {}

    def keep(figure, path, dpi=0):
        kept[path.name] = figure

    monkeypatch.setattr(heatmap, "save_figure", keep)
    monkeypatch.setattr(curves, "save_figure", keep)
    return kept


def panels(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]


def made(spec, seed):
    every, places, tree = planned(spec)
    return every, places, drawn(tree, seed)


def test_heatmap(figures, tmp_path, seed):
    every, places, measurements = made(FIVE, seed)
    del measurements[places[0].average, OWN]  # one pair less at k = 0, s = 2
    for place, point in zip(places, every, strict=True):
        if (point.config.experiment.k, point.config.experiment.s) == (1, 1):
            measurements.pop((place.average, OWN), None)
    found = cells(gains(FIVE, every, places, measurements))
    assert heatmap.draw_heatmap(found, tmp_path / "heatmap.png", "A sweep") == [tmp_path / "heatmap.png"]
    own, recomputed = panels(figures["heatmap.png"])
    assert own.get_title().startswith("own")
    assert recomputed.get_title().startswith("recomputed")
    for axis, treatment in ((own, "own"), (recomputed, "recomputed")):
        (image,) = axis.images
        assert image.get_array().shape == (3, 2)
        assert image.norm.vmin == -image.norm.vmax
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2"]
        assert [tick.get_text() for tick in axis.get_yticklabels()] == ["0", "1", "3"]
        texts = [text.get_text() for text in axis.texts]
        for cell in found:
            e = cell.gains[treatment, "best"]
            drawn_value = image.get_array()[[0, 1, 3].index(cell.k), cell.s - 1]
            assert drawn_value == e.value
            assert {f"{e.value:+.2f}", f"[{e.low:+.2f}, {e.high:+.2f}]", f"n = 5 ({cell.pairs})"} <= set(texts)
        assert texts.count("not\nmeasured") == 1
        assert np.isnan(np.ma.filled(image.get_array(), np.nan)).sum() == 1
    bold = [text.get_text() for text in own.texts if text.get_weight() == "bold"]
    estimates = [cell.gains["own", "best"] for cell in found]
    assert sorted(bold) == sorted(f"{e.value:+.2f}" for e in estimates if e.low > 0 or e.high < 0)


def test_heatmap_of_few_parents_has_no_interval_and_nothing_bold(figures, tmp_path, seed):
    """Also where both parents gain the same: an interval of no width would exclude 0."""
    frame = gains(GRID, *made(GRID, seed)).with_columns(gain_best_own_points=2.5)
    heatmap.draw_heatmap(cells(frame), tmp_path / "heatmap.png", "A sweep")
    own, _ = panels(figures["heatmap.png"])
    assert [text.get_text() for text in own.texts if text.get_weight() == "bold"] == []
    assert [text.get_text() for text in own.texts].count("+2.50") == 6
    assert "n = 2 (4)" in [text.get_text() for text in own.texts]
    assert not any("[" in text.get_text() for text in (*own.texts, figures["heatmap.png"]._suptitle))


def test_heatmap_over_the_mean(figures, tmp_path, seed):
    found = cells(gains(GRID, *made(GRID, seed)))
    heatmap.draw_heatmap(found, tmp_path / "mean.png", "A sweep", over="mean")
    image = panels(figures["mean.png"])[1].images[0].get_array()
    at = {(cell.k, cell.s): cell.gains["recomputed", "mean"].value for cell in found}
    assert image.tolist() == [[at[k, 1], at[k, 2]] for k in (0, 1, 3)]


def test_many_combinations_go_to_several_files(figures, tmp_path, seed):
    spec = spec_of({"augment.padding": tuple(range(8))}, {"after": 0}, alphas=(0.5,), measure=("own",))
    found = cells(gains(spec, *made(spec, seed)))
    paths = heatmap.draw_heatmap(found, tmp_path / "heatmap.png", "A sweep")
    assert [path.name for path in paths] == list(figures) == ["heatmap.png", "heatmap-2.png"]
    titles = [axis.get_title() for figure in figures.values() for axis in panels(figure)]
    assert [int(re.search(r"padding = (\d)", title)[1]) for title in titles] == list(range(8))
    assert all("alpha = 0.5" in title for title in titles)
    assert "no interval" in [text.get_text() for text in panels(figures["heatmap.png"])[0].texts]


def test_a_few_huge_losses_do_not_hide_the_gains():
    gentle = heatmap._norm([0.5, -0.4, 0.3])
    assert (gentle(-0.5), gentle(0.0), gentle(0.5)) == (0.0, 0.5, 1.0)
    harsh = heatmap._norm([0.5, -0.4, 0.3, -70.0])
    assert isinstance(harsh, SymLogNorm)
    assert harsh(0.0) == pytest.approx(0.5)
    assert harsh(0.5) > 0.55
    assert heatmap._norm([0.0]).vmax == 1.0


def mean_over_parents(pairs):
    """Mean of each parent's mean of values; `pairs` are (parent, value)."""
    return fmean(fmean(v for p, v in pairs if p == parent) for parent in dict.fromkeys(p for p, _ in pairs))


def test_curves(figures, tmp_path, seed):
    every, places, measurements = made(GRID, seed)
    lost = len(every) - 1  # k = 3, s = 1, parent 5: one pair lacks an epoch
    del measurements[places[lost].after[0], OWN]
    assert curves.draw_curves(GRID, every, places, measurements, tmp_path / "c.png", "A") == [tmp_path / "c.png"]
    axes = panels(figures["c.png"])
    titles = [f"k = {k}, s = {s}" for k in (0, 1, 3) for s in (1, 2)]
    assert [axis.get_title().split(";")[0] for axis in axes] == titles
    for axis, (k, s) in zip(axes, [(k, s) for k in (0, 1, 3) for s in (1, 2)], strict=True):
        here = [i for i, p in enumerate(every) if (p.config.experiment.k, p.config.experiment.s) == (k, s)]
        whole = [i for i in here if i != lost]
        assert axis.get_title().endswith(f"n = 2 ({len(whole)} pairs)")
        parent, children, average, mark = axis.lines[:4]
        assert list(parent.get_xdata()) == list(range(1, k + 1))
        assert list(children.get_xdata()) == list(range(max(k, 1), k + s + 1))
        for x, y in zip(children.get_xdata(), children.get_ydata(), strict=True):
            values = []
            for i in here:
                for child in places[i].children:
                    state = places[i].parent[-1] if x == k else child[x - k - 1]
                    values.append((every[i].parent, measurements[state, OWN].test_accuracy))
            assert y == pytest.approx(mean_over_parents(values))
        assert list(average.get_xdata()) == [k + s, k + s + 1, k + s + 2]
        for step, y in enumerate(average.get_ydata()):
            path = {i: (places[i].average, *places[i].after)[step] for i in whole}
            values = [(every[i].parent, measurements[state, OWN].test_accuracy) for i, state in path.items()]
            assert y == pytest.approx(mean_over_parents(values))
        assert (list(mark.get_xdata()), mark.get_ydata()[0]) == ([k + s], average.get_ydata()[0])
        fresh = [
            (every[i].parent, measurements[places[i].average, [*places[i].treatments][1]].test_accuracy) for i in here
        ]  # fmt: skip
        assert axis.lines[5].get_ydata()[0] == pytest.approx(mean_over_parents(fresh))
        thin = [len(group.get_paths()) for group in axis.collections]
        assert thin == [2 if k else 0, 2 * 4, len(here)]
        low, high = axis.get_ylim()
        assert low < min(average.get_ydata()) <= max(average.get_ydata()) < high
        assert {line.get_xdata()[0] for line in axis.lines[6:]} == {k, k + s}


def test_curves_of_many_cells_and_combinations(figures, tmp_path, seed):
    spec = spec_of({"experiment.k": tuple(range(1, 10)), "augment.flip": (0, 0.5)}, {"s": 0, "after": 0})
    every, places, measurements = made(spec, seed)
    paths = curves.draw_curves(spec, every, places, measurements, tmp_path / "c.png", "A sweep")
    assert [path.name for path in paths] == list(figures) == ["c.png", "c-2.png"]
    for figure, flip in zip(figures.values(), ("0.0", "0.5"), strict=True):
        assert figure.get_suptitle() == f"A sweep\naugment.flip = {flip}\n6 of 9 values of k are drawn"
        assert [axis.get_title().split(",")[0] for axis in panels(figure)] == [f"k = {k}" for k in (1, 3, 4, 6, 7, 9)]


def test_files(tmp_path, seed):
    spec = spec_of({}, {"after": 1})
    every, places, measurements = made(spec, seed)
    found = cells(gains(spec, every, places, measurements))
    heatmap.draw_heatmap(found, tmp_path / "heatmap.png", "A sweep")
    curves.draw_curves(spec, every, places, measurements, tmp_path / "curves.png", "A sweep")
    starts = {".pdf": b"%PDF-", ".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}
    names = {f"{name}{suffix}" for name in ("curves", "heatmap") for suffix in starts}
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(starts[path.suffix])
        assert path.stat().st_size > 5000
    with pytest.raises(UserError, match=r"cannot be written"):
        heatmap.draw_heatmap(found, tmp_path / "heatmap.pdf" / "x.png", "A sweep")


def test_nothing_measured_draws_no_map(tmp_path):
    assert heatmap.draw_heatmap([], tmp_path / "heatmap.png", "A sweep") == []
    spec = spec_of({})
    every, places, _ = planned(spec)
    assert curves.draw_curves(spec, every, places, {}, tmp_path / "c.png", "A sweep") == [tmp_path / "c.png"]


def test_a_figure_file_has_no_date(tmp_path):
    figure, axis = pyplot.subplots()
    axis.plot([1, 2])
    heatmap.save_figure(figure, tmp_path / "figure.png")
    pyplot.close(figure)
    assert b"Date" not in (tmp_path / "figure.pdf").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "figure.svg").read_bytes()

"""Heat maps and curves: what is drawn is what was measured, and files are whole pictures."""

import math
import re
from dataclasses import replace
from statistics import fmean

import numpy as np
import polars
import pytest
from drawn_measurements import made, planned, spec_of
from drawn_results import mean_over_parents
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from PIL import Image

from fastwi.analysis.statistics import mean_estimate
from fastwi.config.time import Time
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.report import curves, figures, heatmap, tables
from fastwi.report.claims import judge
from fastwi.report.drawing import set_title
from fastwi.report.estimates import SAME
from fastwi.report.rows import gains

TITLE = "Test accuracy of parents, children and their averages"
LINES = "thin: single networks; thick: means over the parents (n)"
GRID = spec_of({"experiment.k": (0, 1, 3), "experiment.s": (2, 1)}, parents=(0, 5), children=4)
FIVE = spec_of({"experiment.k": (0, 1, 3), "experiment.s": (2, 1)}, parents=(0, 5, 6, 7, 8), children=4)


@pytest.fixture
def kept(monkeypatch):
    """Figures that would be written, by name of the file."""
    kept = {}

    def keep(figure, path, **options):
        kept[path.name] = figure

    monkeypatch.setattr(heatmap, "save_figure", keep)
    monkeypatch.setattr(curves, "save_figure", keep)
    return kept


def panels(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]


def test_heatmap(kept, tmp_path, seed):
    sweep, measurements = made(FIVE, seed)
    del measurements[sweep.places[0].average, OWN]  # one pair less at k = 0, s = 2
    for place, point in zip(sweep.places, sweep.points, strict=True):
        if (point.config.experiment.k, point.config.experiment.s) == (1, 1):
            measurements.pop((place.average, OWN), None)
    frame = gains(sweep, measurements)
    assert heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep") == [tmp_path / "heatmap.png"]
    for axis, treatment in zip(panels(kept["heatmap.png"]), ("own", "recomputed"), strict=True):
        assert axis.get_title().startswith(treatment)
        (image,) = axis.images
        opacity = image.get_alpha()
        values = np.ma.filled(image.get_array(), np.nan)
        assert values.shape == (3, 2)
        assert image.norm.vmin == -image.norm.vmax
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2"]
        assert [tick.get_text() for tick in axis.get_yticklabels()] == ["0", "1", "3"]
        texts, bold = [text.get_text() for text in axis.texts], []
        for (k, s), rows in frame.group_by("k", "s"):
            pairs = rows.select(f"gain_best_{treatment}_points", "parent_seed")
            e = mean_estimate(*(column.to_list() for column in pairs))
            assert values[[0, 1, 3].index(k), s - 1] == pytest.approx(e.value)
            assert {f"{e.value:+.2f}", f"[{e.low:+.2f}, {e.high:+.2f}]", f"n = 5 ({rows.height})"} <= set(texts)
            excludes = e.low > 0 or e.high < 0
            assert opacity[[0, 1, 3].index(k), s - 1] == (1.0 if excludes else heatmap._PALE)
            bold += [f"{e.value:+.2f}"] if excludes else []
        assert texts.count("not\nmeasured") == np.isnan(values).sum() == 1
        assert sorted(text.get_text() for text in axis.texts if text.get_weight() == "bold") == sorted(bold)


def test_heatmap_of_few_parents_has_no_interval_and_nothing_bold(kept, tmp_path, seed):
    """Also where both parents gain the same: an interval of no width would exclude 0."""
    frame = gains(*made(GRID, seed)).with_columns(gain_best_own_points=2.5)
    heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep")
    own, other = panels(kept["heatmap.png"])
    assert [text.get_text() for text in own.texts if text.get_weight() == "bold"] == []
    assert [text.get_text() for text in own.texts].count("+2.50") == 6
    assert "n = 2 (4)" in [text.get_text() for text in own.texts]
    assert (own.images[0].get_alpha() == heatmap._PALE).all()
    assert other.images[0].colorbar.extend == "neither"
    assert not any("[" in text.get_text() for text in (*own.texts, kept["heatmap.png"]._suptitle))


def test_the_colours_are_those_of_gains_that_are_there(kept, tmp_path, seed):
    """A mean of -60 whose interval contains 0 does not set the scale."""
    frame = gains(*made(FIVE, seed))
    noise = polars.col("parent_seed") / 100
    wild = polars.when(polars.col("parent_seed") == 0).then(-300.0).otherwise(0.0)
    gain = polars.when(polars.col("k") == 0).then(wild).otherwise(polars.col("k") + noise)
    frame = frame.with_columns(gain_best_own_points=gain, gain_best_recomputed_points=gain)
    heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep")
    figure = kept["heatmap.png"]
    for axis in panels(figure):
        (image,) = axis.images
        values = image.get_array()
        assert list(values[0]) == pytest.approx([-60.0, -60.0])
        assert image.norm.vmax == pytest.approx(values[1:].max())
        assert image.get_alpha().tolist() == [[heatmap._PALE] * 2, [1.0] * 2, [1.0] * 2]
    assert image.colorbar.extend == "both"


def test_one_end_for_all_k_has_the_axis_of_s(kept, tmp_path, seed):
    spec = spec_of({"experiment.k": (1, 3)}, {"s": Time("4ep-k")})
    heatmap.draw_heatmap(gains(*made(spec, seed)), tmp_path / "heatmap.png", "A sweep")
    for axis in panels(kept["heatmap.png"]):
        assert axis.get_xlabel() == "k + s: epochs at averaging"
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["4"]


@pytest.mark.parametrize(("differs", "expected"), [(False, ["own"]), (True, ["own", "recomputed"])])
def test_recomputed_statistics_that_change_nothing_are_not_shown(kept, tmp_path, seed, differs, expected):
    """As of a network without batch norm; one number that differs is enough to show both."""
    frame = gains(*made(FIVE, seed))
    frame = frame.with_columns(
        polars.col(name.replace("recomputed", "own")).alias(name)
        for name in frame.columns
        if "recomputed" in name and "after" not in name
    )
    if differs:
        last = polars.int_range(polars.len()) == frame.height - 1
        frame = frame.with_columns(polars.col("gain_mean_recomputed_points") + last * 0.01)
    assert tables.measured(frame) == expected
    table = tables.cell_table(frame)
    assert [name in table.columns for name in ("gain, own [95 %]", "gain, recomputed [95 %]")] == [True, differs]
    heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep")
    figure = kept["heatmap.png"]
    assert [axis.get_title().split()[0] for axis in panels(figure)] == expected
    found = judge(frame, {})[0].found
    assert len([finding for finding in found.findings if finding.verdict]) == len(expected)
    for said in (table.title, figure._suptitle.get_text(), " ".join(found.notes)):
        assert (SAME[1:] in said) != differs


@pytest.mark.parametrize("treatments", [1, 2])
def test_many_combinations_go_to_several_files(kept, tmp_path, seed, treatments):
    measure = ("own", "recomputed")[:treatments]
    spec = spec_of({"augment.padding": tuple(range(14))}, {"after": 0}, alphas=(0.5,), measure=measure)
    paths = heatmap.draw_heatmap(gains(*made(spec, seed)), tmp_path / "heatmap.png", "A sweep")
    names = ["heatmap.png", "heatmap-2.png", "heatmap-3.png"]  # of 6 rows of panels
    assert [path.name for path in paths] == list(kept) == names
    titles = [axis.get_title() for figure in kept.values() for axis in panels(figure)]
    assert [int(re.search(r"padding = (\d+)", title)[1]) for title in titles[::treatments]] == list(range(14))
    assert all("alpha = 0.5" in title for title in titles)
    assert len(titles) == 14 * treatments


def test_a_few_huge_losses_do_not_hide_the_gains():
    gentle = heatmap._norm([0.5, -0.4, 0.3])
    assert (gentle(-0.5), gentle(0.0), gentle(0.5)) == (0.0, 0.5, 1.0)
    harsh = heatmap._norm([0.5, -0.4, 0.3, -70.0])
    assert isinstance(harsh, SymLogNorm)
    assert harsh(0.0) == pytest.approx(0.5)
    assert harsh(0.5) > 0.55
    assert heatmap._norm([0.0]).vmax == 1.0


def test_curves(kept, tmp_path, seed):
    sweep, measurements = made(GRID, seed)
    lost = sweep.places[-1]  # k = 3, s = 1, parent 5: one pair lacks an epoch
    del measurements[lost.after[0], OWN]
    assert curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A") == [tmp_path / "c.png"]
    axes = panels(kept["c.png"])
    assert axes[0].get_ylim() == axes[1].get_ylim() != axes[2].get_ylim()  # of one row alike
    cells = {}
    for point, place in zip(sweep.points, sweep.places, strict=True):
        e = point.config.experiment
        cells.setdefault((e.k, e.s), []).append((point.parent, place))

    def mean(networks):
        """`networks`: (parent, states after one epoch each)."""
        for states in zip(*(states for _, states in networks), strict=True):
            found = zip(networks, states, strict=True)
            yield mean_over_parents([(parent, measurements[key].test_accuracy) for (parent, _), key in found])

    for axis, (k, s) in zip(axes, sorted(cells), strict=True):
        here = cells[k, s]
        whole = [(parent, place) for parent, place in here if place is not lost]
        assert axis.get_title() == f"k = {k}, s = {s}; n = 2 parents, {len(whole)} pairs"
        children, past = [], max(k - max(1, (s + 2) // 4), 1) - 1  # of the parent's past a part is drawn
        for parent, place in here:
            children += [(parent, (*place.parent[-1:], *states)) for states in place.children]
        recomputed = [(p, [(place.average, [*place.treatments][1])]) for p, place in here]
        expected = [
            (range(past + 1, k + 1), [(parent, place.parent[past:]) for parent, place in here]),
            (range(max(k, 1), k + s + 1), children),
            (range(k + s, k + s + 3), [(parent, (place.average, *place.after)) for parent, place in whole]),
            ([k + s], [(parent, (place.average,)) for parent, place in whole]),  # its mark
        ]
        for line, (epochs, networks) in zip(axis.lines, expected, strict=False):
            assert list(line.get_xdata()) == list(epochs)
            own = [(parent, [(state, OWN) for state in states]) for parent, states in networks]
            assert list(line.get_ydata()) == pytest.approx(list(mean(own)))
        ends = [
            (p, measurements[end, [*place.treatments][1]].test_accuracy) for p, place in here for end in place.ends
        ]
        assert list(axis.lines[4].get_xdata()) == [k + s]
        assert list(axis.lines[4].get_ydata()) == pytest.approx([mean_over_parents(ends)])
        assert list(axis.lines[5].get_ydata()) == pytest.approx(list(mean(recomputed)))
        thin = [len(group.get_paths()) for group in axis.collections]
        assert thin == [2 if k else 0, 2 * 4, len(here)]
        # Nothing is cut off, and no range is empty.
        drawn_xy = np.concatenate([path.vertices for group in axis.collections for path in group.get_paths()])
        drawn_xy = drawn_xy[np.isfinite(drawn_xy).all(axis=1)]
        (low_x, low_y), (high_x, high_y) = axis.viewLim.min, axis.viewLim.max
        assert ((drawn_xy > (low_x, low_y)) & (drawn_xy < (high_x, high_y))).all()
        assert low_x > min(k, drawn_xy[:, 0].min()) - 0.5
        assert high_x < drawn_xy[:, 0].max() + 0.5
        assert {line.get_xdata()[0] for line in axis.lines[6:]} == {k, k + s}


def test_a_parent_without_children_is_drawn_from_its_first_epoch(kept, tmp_path, seed):
    sweep, measurements = made(spec_of({}, {"k": 6, "s": 0, "after": 0}), seed)
    curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    (axis,) = panels(kept["c.png"])
    assert list(axis.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("values", [(0.5,), (0.25, 0.5)])
def test_what_names_a_setting_is_not_cut_off(kept, tmp_path, seed, values):
    """Names of keys are long."""
    axes = {"experiment.continue_children": (True,), "experiment.children_rate_factor": values}
    axes |= {"optimizer.learning_rate": values, "experiment.round_momentum": ("average",)}
    sweep, measurements = made(spec_of(axes), seed)
    heatmap.draw_gains(gains(sweep, measurements), tmp_path, "A sweep")
    curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    assert len(kept) == 1 + len(values) ** 2
    for name, figure in kept.items():
        figure.draw_without_rendering()
        for text in (figure._suptitle, figure.axes[0].yaxis.label):
            shown = text.get_window_extent()
            (low_x, low_y), (high_x, high_y) = shown.min, shown.max
            assert min(low_x, low_y) >= 0, (name, text.get_text())
            assert high_x <= figure.bbox.width, (name, text.get_text())
            assert high_y <= figure.bbox.height, (name, text.get_text())


def test_titles_of_parts_of_figures_are_wrapped_too():
    figure = Figure(figsize=(8, 3))
    left, _ = figure.subfigures(1, 2)
    set_title(left, "a long title " * 10, "", "a short one", size=9)
    figure.draw_without_rendering()
    assert left._suptitle.get_window_extent().width <= left.bbox.width
    assert left.get_suptitle().split() == ["a", "long", "title"] * 10 + ["a", "short", "one"]
    assert left.get_suptitle().endswith("\na short one")


def test_what_diverged_is_in_no_mean(kept, tmp_path, seed):
    """Its accuracy is that of a constant."""
    sweep, measurements = made(spec_of({}, parents=(0, 5)), seed)
    first, second = sweep.places
    key = second.after[-1], OWN
    measurements[key] = replace(measurements[key], test_loss=math.nan)
    curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    (axis,) = panels(kept["c.png"])
    assert "n = 1 parent, 1 pair\nparents: n = 2, children: n = 2" in axis.get_title()  # of whom there are means too
    expected = [measurements[state, OWN].test_accuracy for state in (first.average, *first.after)]
    assert list(axis.lines[2].get_ydata()) == pytest.approx(expected)


def test_children_of_later_rounds_are_of_their_tuple(kept, tmp_path, seed):
    """Child 1 of the tuples 1-2 and 1-3 is one network in the first round, and two from then on."""
    experiment = {"k": 1, "s": 1, "after": 0, "rounds": 2}
    sweep, measurements = made(spec_of({}, experiment, children=3, tuples="all"), seed)
    curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    (axis,) = panels(kept["c.png"])
    lines = [states for place in sweep.places for states in place.children]
    assert len({states[0] for states in lines}) == 3
    assert len({states[1] for states in lines}) == len(axis.collections[1].get_paths()) == 6
    expected = [fmean(measurements[states[i], OWN].test_accuracy for states in lines) for i in (0, 1)]
    assert list(axis.lines[1].get_ydata()[1:]) == pytest.approx(expected)


def test_curves_under_both_statistics(kept, tmp_path, seed):
    """Every network and epoch, with the statistics of that epoch."""
    sweep, measurements = made(spec_of({}, {"measure": ("own", "recomputed")}), seed)
    (place,) = sweep.places
    curves.draw_run(sweep, measurements, tmp_path / "figure.png", "A run")
    ends = [[*place.children[i][:1]] for i in (0, 1)]
    paths = [place.parent, (place.parent[-1], *ends[0]), (place.parent[-1], *ends[1]), (place.average, *place.after)]
    for epochs, lines, networks in (
        ((1, 2), (0, 4), paths[:1]), ((2, 3), (1, 5), paths[1:3]), ((3, 4, 5), (2, 6), paths[3:])
    ):  # fmt: skip
        for line, names in zip(lines, ([OWN] * 3, [place.recomputed[epoch].name for epoch in epochs]), strict=True):
            values = [
                fmean(measurements[path[i], names[i]].test_accuracy for path in networks) for i in range(len(epochs))
            ]
            drawn = kept["figure.png"].axes[0].lines[line]
            assert list(drawn.get_xdata()) == list(epochs)
            assert list(drawn.get_ydata()) == pytest.approx(values)


def test_curves_at_each_alpha_are_those_of_its_average(kept, tmp_path, seed):
    sweep, measurements = made(spec_of({}, alphas=(0.25, 0.75)), seed)
    curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    for figure, point, place in zip(kept.values(), sweep.points, sweep.places, strict=True):
        assert figure.get_suptitle().endswith(f"\nalpha = {point.alpha}")
        (axis,) = panels(figure)
        expected = [measurements[state, OWN].test_accuracy for state in (place.average, *place.after)]
        assert list(axis.lines[2].get_ydata()) == pytest.approx(expected)


def test_a_parent_that_goes_on_is_drawn_as_far_as_the_average(kept, tmp_path, seed):
    sweep, measurements = made(spec_of({}, {"continue_parent": "total"}), seed)
    (place,) = sweep.places
    assert place.time(place.alone[-1]) == 6
    curves.draw_run(sweep, measurements, tmp_path / "figure.png", "A run")
    parent = kept["figure.png"].axes[0].lines[0]
    assert list(parent.get_xdata()) == [1, 2, 3, 4, 5]
    states = (*place.parent, *place.alone[:3])
    assert list(parent.get_ydata()) == [measurements[state, OWN].test_accuracy for state in states]


def test_curves_of_many_cells_and_combinations(kept, tmp_path, seed):
    spec = spec_of({"experiment.k": tuple(range(1, 10)), "augment.flip": (0, 0.5)}, {"s": 0, "after": 0})
    sweep, measurements = made(spec, seed)
    paths = curves.draw_curves(sweep, measurements, tmp_path / "c.png", "A sweep")
    assert [path.name for path in paths] == list(kept) == ["c.png", "c-2.png"]
    for figure, flip in zip(kept.values(), ("0.0", "0.5"), strict=True):
        assert (
            figure.get_suptitle() == f"{TITLE}: A sweep\n{LINES}\naugment.flip = {flip}\n6 of 9 values of k are drawn"
        )
        assert [axis.get_title().split(",")[0] for axis in panels(figure)] == [f"k = {k}" for k in (1, 3, 4, 6, 7, 9)]


def test_files(tmp_path, seed):
    spec = spec_of({}, {"after": 1})
    sweep, measurements = made(spec, seed)
    frame = gains(sweep, measurements)
    heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep")
    curves.draw_curves(sweep, measurements, tmp_path / "curves.png", "A sweep")
    starts = {".pdf": b"%PDF-", ".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}
    names = {f"{name}{suffix}" for name in ("curves", "heatmap") for suffix in starts}
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(starts[path.suffix])
        assert path.stat().st_size > 1000
        if path.suffix == ".png":
            Image.open(path).load()
    with pytest.raises(UserError, match=r"cannot be written"):
        heatmap.draw_heatmap(frame, tmp_path / "heatmap.pdf" / "x.png", "A sweep")


@pytest.mark.parametrize("parents", [(0, 5), (0, 5, 6, 7, 8)], ids=len)
def test_gains_at_one_k_and_s_are_a_row_for_each_other_setting(kept, tmp_path, seed, parents):
    spec = spec_of({"augment.flip": (0, 0.5), "augment.padding": (1, 2)}, parents=parents, children=4)
    frame = gains(*made(spec, seed))
    assert heatmap.draw_gains(frame, tmp_path, "A sweep") == [tmp_path / "gains.png"]
    (axis,) = kept["gains.png"].axes
    labels = ["0.0, 1", "0.0, 2", "0.5, 1", "0.5, 2"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == labels
    assert "A sweep; k = 2, s = 1\n" in kept["gains.png"].get_suptitle()
    assert [text.get_text() for text in axis.texts] == [f"n = {len(parents)} ({2 * len(parents)})"] * 8
    dots = [line for line in axis.lines if line.get_marker() == "o" and line.get_markersize() > 3]
    assert len(dots) == 8
    for dot, (treatment, label) in zip(
        dots, [(t, label) for t in ("own", "recomputed") for label in labels], strict=True
    ):
        flip, padding = map(float, label.split(","))
        rows = frame.filter((polars.col("augment.flip") == flip) & (polars.col("augment.padding") == padding))
        by_parent = rows.group_by("parent_seed").agg(polars.col(f"gain_best_{treatment}_points").mean())
        assert dot.get_xdata()[0] == pytest.approx(by_parent.to_series(1).mean())
        assert abs(dot.get_ydata()[0] - labels.index(label)) < 0.5
        assert (dot.get_markerfacecolor() == "white") == (len(parents) < 5)
    grid = gains(*made(GRID, seed))
    assert heatmap.draw_gains(grid, tmp_path, "A sweep") == [tmp_path / "heatmap.png"]


def test_nothing_measured_draws_no_map(tmp_path):
    spec = spec_of({})
    sweep = planned(spec)
    frame = gains(sweep, {})
    assert heatmap.draw_heatmap(frame, tmp_path / "heatmap.png", "A sweep") == []
    assert heatmap.draw_gains(frame, tmp_path, "A sweep") == []
    assert curves.draw_curves(sweep, {}, tmp_path / "c.png", "A sweep") == [tmp_path / "c.png"]


def test_a_run_is_drawn_in_three_metrics(kept, tmp_path, seed):
    spec = spec_of({})
    sweep, measurements = made(spec, seed)
    (place,) = sweep.places
    curves.draw_run(sweep, measurements, tmp_path / "figure.png", "A run")
    accuracy, test_loss, train_loss = kept["figure.png"].axes
    for axis, metric in ((accuracy, "test_accuracy"), (test_loss, "test_loss"), (train_loss, "train_loss")):
        parent, children, average = axis.lines[:3]
        assert list(parent.get_ydata()) == [getattr(measurements[s, OWN], metric) for s in place.parent]
        assert list(children.get_xdata()) == [2, 3]
        # No loss of training belongs to an average that is not trained on yet.
        states = place.after if metric == "train_loss" else (place.average, *place.after)
        assert list(average.get_ydata()) == [getattr(measurements[s, OWN], metric) for s in states]
        assert list(average.get_xdata()) == [3, 4, 5][-len(states) :]
        assert axis.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(90.0, None, ["linear", "log", "log"]), (1.5, None, ["linear"] * 3), (90.0, 0.0, ["linear"] * 3)],
)
def test_a_run_with_a_huge_first_loss_has_a_logarithmic_axis(kept, tmp_path, seed, first, last, expected):
    """A loss of 0 has no place there. Accuracies have a linear axis always."""
    sweep, measurements = made(spec_of({}), seed)
    (place,) = sweep.places
    for state, loss in ((place.parent[0], first), (place.after[-1], last)):
        if loss is not None:
            old = measurements[state, OWN]
            measurements[state, OWN] = replace(old, test_loss=loss, train_loss=loss)
    curves.draw_run(sweep, measurements, tmp_path / "figure.png", "A run")
    axes = kept["figure.png"].axes
    assert [axis.get_yscale() for axis in axes] == expected
    assert [("log scale" in axis.get_ylabel()) for axis in axes] == [scale == "log" for scale in expected]


def test_a_figure_for_a_paper_has_no_title_and_fonts_that_are_text(tmp_path, request):
    """What is between two dollar signs of a name is no formula, and this one is none; ticks of powers are such."""
    request.addfinalizer(lambda: figures.set_style("screen"))
    found, label = {}, "label of $^{the$ axis"
    for style in ("screen", "paper"):
        figure = Figure()
        axis = figure.subplots()
        axis.plot([1, 1000], label=label)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.set_title(label)
        axis.set_xticks([0, 1], [label] * 2)
        axis.legend()
        figure.suptitle("title of $^{the$ figure")
        figures.set_style(style)
        figures.save_figure(figure, tmp_path / f"{style}.png")
        found[style] = (tmp_path / f"{style}.svg").read_text()
    assert found["paper"].count(f">{label}<") == 5
    assert r">$\mathdefault" not in found["paper"]
    assert "title of $^{the$ figure" not in found["paper"]
    assert "title of $^{the$ figure" in found["screen"]  # as a comment: its letters are shapes
    for path in tmp_path.iterdir():
        assert b"Date" not in path.read_bytes()
        assert b"<dc:date>" not in path.read_bytes()
    assert b"/Type3" not in (tmp_path / "paper.pdf").read_bytes()


def test_a_png_has_a_palette_that_nobody_sees(tmp_path, seed):
    """Of a figure with thousands of colours, and one that a single marker has."""
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.pcolormesh(np.random.default_rng(seed).random((40, 40)), cmap="viridis")
    right.scatter(*np.random.default_rng(seed).random((2, 50)), c=range(50), cmap="plasma")
    right.plot([0.5], [0.5], "o", color="lime", ms=3)
    figures.save_figure(figure, tmp_path / "palette.png")
    figure.savefig(tmp_path / "all.png", dpi=figures.DPI)
    palette, every = (Image.open(tmp_path / f"{name}.png") for name in ("palette", "all"))
    assert palette.mode == "P"
    assert palette.info["dpi"] == pytest.approx(every.info["dpi"])
    different = np.abs(np.asarray(palette.convert("RGB"), int) - np.asarray(every.convert("RGB"), int))
    assert len(every.getcolors(2**24) or ()) > 1000
    assert different.max() <= 48  # of 255
    assert different.mean() < 3

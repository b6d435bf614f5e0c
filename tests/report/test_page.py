"""`python -m fastwi.report` on a real sweep of digits: one page that needs nothing else, and says what is missing."""

import base64
import gzip
import json
import os
import random
import re
import shlex
import shutil
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars
import pytest
from commands import refused
from drawn_results import barrier_frame

from fastwi.analysis.statistics import Estimate
from fastwi.config.read import read_analysis_request, read_sweep_request
from fastwi.config.write import deciding, sweep_to_yaml
from fastwi.errors import UserError
from fastwi.report.__main__ import main
from fastwi.report.claims import CLAIMS, Finding
from fastwi.report.finished import find_sweeps
from fastwi.report.page import csv_download, marked
from fastwi.sealed import seal_directory, sealed_yaml, write_sealed
from fastwi.studies import all_studies
from fastwi.studies.governance import GAINS, QUANTITIES, correlations
from fastwi.sweep import main as sweep

SWEEP = """
data: {{path: {data}, train_images: 100, test_images: 50}}
augment: {{padding: 2, flip: 0.0}}
optimizer: {{batch_size: 50, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
model: {{width: 4}}
experiment: {{k: 1, s: 1, after: 1, recompute_images: 100}}
engine: {{device: cpu, precision: fp32, threads: 1}}
axes:
  experiment.k: [1, 2]
sweep: {{store: {here}/store, directory: {here}/sweeps, parents: [0, 1]}}
"""
HOSTILE = "\"><script>alert('x')</script>&{{ 7 * 7 }}"
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Elements and text of a page; raises where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def results(digits_directory, tmp_path_factory) -> Path:
    """A directory with a store and one tiny sweep, trained once. Tests must not write to it."""
    here = tmp_path_factory.mktemp("report")
    (here / "grid.yaml").write_text(SWEEP.format(data=digits_directory, here=here))
    assert sweep(["--config", str(here / "grid.yaml")]) == 0
    return here


@pytest.fixture
def copied(results, tmp_path) -> Path:
    """A copy of the sweep's results directory."""
    shutil.copytree(results / "sweeps" / "grid", tmp_path / "grid")
    return tmp_path / "grid"


def sealed_again(directory: Path) -> None:
    """Have the files as they are now be the sweep's."""
    seal_directory(directory, json.loads((directory / "manifest.json").read_text()), os.listdir(directory))


def flip(path: Path, seed: int) -> None:
    """Flip a bit that changes what the file says."""
    content = bytearray(path.read_bytes())
    content[random.Random(seed).choice([i for i, byte in enumerate(content) if not bytes([byte]).isspace()])] ^= 1
    path.write_bytes(content)


def page_of(target: Path, *more: str) -> tuple[str, Page]:
    assert main([str(target), *more]) == 0
    html = (target / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def unreadable(target: Path) -> str:
    """The line that says why the page of `target` is not made."""
    with pytest.raises(UserError) as caught:
        find_sweeps([target], all_studies())
    (line,) = str(caught.value).splitlines()
    return line


def study_of(directory: Path, name: str, frames: dict[str, polars.DataFrame], **about) -> Path:
    """Files as a study leaves them."""
    home = directory / "analyses" / name
    home.mkdir(parents=True)
    for stem, frame in frames.items():
        frame.write_parquet(home / f"{stem}.parquet")
    rows = {stem: frame.height for stem, frame in frames.items()}
    seal_directory(home, {"rows": rows, **about}, os.listdir(home))
    return home


def self_contained(html: str, page: Page) -> None:
    """No script, nothing fetched, and every reference is to what the page has."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "foreignobject"}
    for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
        assert all(value.startswith(("#", "data:")) for value in page.values(name))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.S) + page.values("style"))
    assert "@import" not in styles
    assert "url(" not in styles
    assert "img-src data:" in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href") if value.startswith("#")} <= set(ids)


def test_the_page_of_a_sweep(copied, capsys):
    shutil.copyfile(copied / "heatmap.png", copied / "heatmap-2.png")  # as of a sweep of many combinations
    assert main([str(copied), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    html = (copied / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    self_contained(html, page)
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    for stem, image in zip(("heatmap", "heatmap-2", "curves"), images, strict=True):
        assert image["alt"]
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == (copied / f"{stem}.png").read_bytes()
    tables = [tag for tag, _ in page.elements if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.elements if tag == "caption"]) > 5
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for part, digest in json.loads((copied / "manifest.json").read_text())["dataset"]["sha256"].items():
        assert f"dataset.sha256.{part}{digest}" in page.text
    # Its numbers are those of the files.
    frame = polars.read_parquet(copied / "gains.parquet")
    (found,) = said["sweeps"]
    assert (found["name"], found["directory"]) == ("grid", str(copied))
    assert [claim["claim"] for claim in found["claims"]] == list(CLAIMS)
    first = found["claims"][0]["findings"][0]
    by_parent = frame.group_by("parent_seed").agg(polars.col("gain_best_own_points").mean())
    assert first["value"] == pytest.approx(by_parent["gain_best_own_points"].mean(), abs=1e-12)
    assert (first["n_parents"], first["n_pairs"]) == (2, 4)
    assert f"{first['value']:+.2f}" in html
    assert said["bytes"] == (copied / "report.html").stat().st_size
    uri = re.search(r'download="grid-gains.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    assert uri is not None
    rows = polars.read_csv(base64.b64decode(uri[1]))
    assert rows["gain_best_own_points"].to_list() == frame["gain_best_own_points"].to_list()
    assert [json.loads(text) for text in rows["after_%"]] == frame["after_%"].to_list()
    uri = re.search(r'download="grid-claim-1.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    assert uri is not None
    said_of = find_sweeps([copied], all_studies())[0].claims[0].found
    assert len(said_of.findings) == len(said_of.details) == 2 * 2
    every = [finding.what for finding in (*said_of.findings, *said_of.details)]
    assert polars.read_csv(base64.b64decode(uri[1]))["what"].to_list() == every
    # What was not run is named, with its command.
    assert found["not_run"] == list(all_studies())
    for name in all_studies():
        command = f"python -m fastwi.analyze {name} --config {copied / 'sweep.yaml'}"
        assert command in page.text
        words = shlex.split(command)[3:]
        assert read_analysis_request(words, dict.fromkeys(all_studies(), "")).study == name


def test_every_claim_has_its_n(copied):
    html, page = page_of(copied)
    for number, statement in CLAIMS.items():
        assert f"{number}. {statement.title}" in page.text
        article = re.search(rf'<article class="claim" id="sweep-1-claim-{number}">(.*?)</article>', html, re.S)
        assert article is not None
        rows = re.findall(r'<tr role="row">(.*?)</tr>', article[1], re.S)
        assert bool(rows) == (number < 4)
        for row in rows:
            assert re.search(r"n = 2 parents, \d+ pairs?", row)
            assert not re.search(r"\[[-+]\d", row)
        badges = set(re.findall(r'class="badge ([^"]+)">([^<]+)<', article[1]))
        expected = ("not-settled", "not settled (n = 2)") if rows else ("not-measured", "not measured")
        assert badges == {expected}
        top = re.search(rf'<a href="#sweep-1-claim-{number}"><span class="badge ([^"]+)">([^<]+)<', html)
        assert top is not None
        assert top.groups() == expected


def test_one_parent(copied):
    frame = polars.read_parquet(copied / "gains.parquet").filter(polars.col("parent_seed") == 0)
    frame.write_parquet(copied / "gains.parquet")
    sealed_again(copied)
    html, page = page_of(copied)
    assert "n = 1: nothing can be concluded" in page.text
    assert "1 of the sweep's 2 parents are measured; of the others networks are missing, or diverged" in page.text
    assert re.search(r"averages measured\s*2 of 4\s", page.text)
    assert html.count('class="point"') > 0  # the parent's own value
    assert not re.search(r'class="badge (confirmed|refuted)"', html)


def test_findings_of_one_unit_share_a_scale():
    """It has 0. Without an interval the parents' own values are drawn; without a value nothing is."""

    def finding(unit, value, low, high, points=()):
        return Finding("", Estimate(value, low, high, 5, 5, points=points), unit)

    found = [
        finding("points", 6.0, 4.0, 8.0, (4.0, 8.0)),
        finding("points", 1.0, None, None, (-2.0, 4.0)),
        finding("1", -0.5, -1.0, 0.0),
        finding("1", None, None, None),
        finding("2", 0.0, None, None, (0.0,)),
    ]
    assert marked(found) == [
        (found[0], [59.2, 77.6, 96.0, 22.4], []),
        (found[1], [31.6, 31.6, 31.6, 22.4], [4.0, 59.2]),
        (found[2], [4.0, 50.0, 96.0, 96.0], []),
        (found[3], [], []),
        (found[4], [], []),
    ]


def test_what_spans_far_more_than_the_others_does_not_shrink_them():
    """The scale is that of the others, -2 to 8; ends beyond it are at 0 and 100."""

    def finding(value, low, high, points=()):
        return Finding("", Estimate(value, low, high, 5, 5, points=points), "points")

    usual = [finding(6.0, 4.0, 8.0), finding(1.0, -2.0, 4.0), finding(2.0, -1.5, 5.5)]
    wide = [finding(-73.0, -248.0, 102.0), finding(3.0, -300.0, 8.0), finding(50.0, None, None, (3.0, 97.0))]
    alone = marked(usual)
    assert marked([*usual, *wide[:1]])[:3] == alone
    found = marked([*usual, usual[0], *wide])
    assert found[:3] == alone
    assert [(bar, points) for _, bar, points in found[4:]] == [
        ([0.0, 0.0, 100.0, 22.4], []),
        ([0.0, 50.0, 96.0, 22.4], []),
        ([100.0, 100.0, 100.0, 22.4], [50.0, 100.0]),
    ]


def test_the_command_of_a_study_has_its_options(copied):
    """A manifest's options come back from the shown command."""
    options = {"alphas": 3, "low": -0.5, "cells": ["1,1", "2,1"], "treatments": ["recomputed"], "pairs": 1}
    rows = [
        {"gain": "gain_best_own_points", "quantity": quantity, "scope": scope, "spearman": 0.5, "low": None,
         "high": None, "n_parents": 2, "n_pairs": 4, "note": "n = 2: too few"}
        for quantity in ("k", "relative_distance")
        for scope in ("all pairs", "within cells")
    ]  # fmt: skip
    frame = polars.DataFrame(rows, schema_overrides={"low": polars.Float64, "high": polars.Float64})
    study_of(copied, "governance", {"correlations": frame}, options=options)
    html, page = page_of(copied)
    self_contained(html, page)
    assert "children's distance relative to the parent's norm" in page.text
    (shown,) = {unescape(text) for text in re.findall(r"python -m fastwi.analyze governance [^<\n]*", html)}
    found = read_analysis_request(shlex.split(shown)[3:], dict.fromkeys(all_studies(), "")).options
    for name, value in options.items():
        assert getattr(found, name) == (tuple(value) if isinstance(value, list) else value)


def test_statistics_that_repeat_others_count_once_and_what_is_missing_is_said(copied, capsys, seed):
    """As without batch norm. Studies that were run are not missing."""
    own = barrier_frame(np.random.default_rng(seed), -1.0).filter(batch_norm="averaged")
    again = own.with_columns(batch_norm=polars.lit("recomputed"))
    study_of(copied, "connectivity", {"barrier": polars.concat([own, again])})
    capsys.readouterr()
    assert main([str(copied), "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)["sweeps"][0]["claims"]
    assert ["averaged statistics" in finding["what"] for finding in claims[3]["findings"]] == [True] * 3
    missing = [re.findall(r"fastwi\.analyze (\w+)", " ".join(claim["missing"])) for claim in claims]
    assert missing == [[], [], ["governance"], [], ["importance"]]


def test_correlations_of_an_earlier_version_get_the_intervals_of_this_one(copied, seed):
    draw = np.random.default_rng(seed)
    pairs = polars.DataFrame({"k": [1, 2] * 6, "s": 1, "alpha": None, "parent_seed": [*range(6)] * 2, "pair": 0})
    numbers = (name for name in (*GAINS, *QUANTITIES) if name not in pairs.columns)
    pairs = pairs.with_columns(polars.Series(name, draw.random(12)) for name in numbers)
    stored = {"pairs": pairs, "correlations": correlations(pairs).with_columns(low=0.0)}
    study_of(copied, "governance", stored)
    found = find_sweeps([copied], all_studies())[0].studies["governance"].frames["correlations"]
    assert found.equals(correlations(pairs), null_equal=True)
    assert not found.equals(stored["correlations"], null_equal=True)


def test_a_half_written_study_counts_as_not_run(copied):
    (copied / "analyses" / "connectivity").mkdir(parents=True)
    (copied / "analyses" / "connectivity" / "barrier.parquet").write_bytes(b"half")
    _, page = page_of(copied)
    assert "The study connectivity was not run." in page.text


def test_a_store_and_several_targets(results, copied, tmp_path, capsys):
    out = tmp_path / "pages" / "all.html"
    targets = [str(results / "store"), str(copied), str(results / "store" / ".." / "sweeps" / "grid")]
    assert main([*targets, "--out", str(out)]) == 0
    html = out.read_text()
    page = Page(html)
    self_contained(html, page)
    assert [value for value in page.values("id") if re.fullmatch(r"sweep-\d+", value)] == ["sweep-1", "sweep-2"]
    out = capsys.readouterr().out
    assert "2 sweeps" in out
    for directory in (copied, results / "sweeps" / "grid"):  # both are called grid
        assert f"grid ({directory}): claim 1" in out
        assert page.text.count(f"grid ({directory})") == 4  # title, contents, verdicts, heading
    assert all(f"claim {number}: " in out and statement.title in out for number, statement in CLAIMS.items())


def test_hostile_names(copied, tmp_path):
    """From a directory's name, a manifest and a data frame: text."""
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["dataset"]["name"] = manifest["device"]["cpu"] = HOSTILE
    text = (copied / "sweep.yaml").read_text().rpartition("\n#")[0]
    assert '  name: "grid"' in text
    (copied / "sweep.yaml").write_text(sealed_yaml(text.replace('  name: "grid"', '  name: ""')))
    frame = polars.read_parquet(copied / "gains.parquet")
    frame = frame.insert_column(0, polars.Series("model.name", [HOSTILE] * frame.height))
    frame.write_parquet(copied / "gains.parquet")
    seal_directory(copied, manifest, os.listdir(copied))
    hostile = copied.rename(tmp_path / HOSTILE.replace("/", "|"))
    html, page = page_of(hostile)
    self_contained(html, page)
    assert "<script" not in html
    assert HOSTILE in page.text
    assert hostile.name in page.text


def test_axes_have_all_their_values_and_commands_the_path_from_where_the_sweep_was_started(results, copied, tmp_path):
    axes = {"axes.model.name": "resnet20,resnet32", "axes.experiment.after": "1,3", "sweep.directory": "kept"}
    argv = ["--config", str(results / "grid.yaml"), *(f"--{key}={value}" for key, value in axes.items())]
    (copied / "sweep.yaml").write_text(sealed_yaml(sweep_to_yaml(read_sweep_request(argv).spec)))
    sealed_again(copied)
    for place, shown in (("kept", "kept"), ("moved", str(tmp_path / "moved"))):
        shutil.copytree(copied, tmp_path / place / "grid")
        html, page = page_of(tmp_path / place / "grid")
        assert re.search(r"network\s*resnet20, resnet32\s", page.text)
        assert re.search(r"further epochs of the average\s*1, 3\s", page.text)
        assert set(re.findall(r"fastwi.sweep --config (\S+)/grid/sweep.yaml", html)) == {shown}


def test_a_store_has_sweeps_of_one_name_in_several_directories(results, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(results / "store", store)
    argv = ["--config", str(results / "grid.yaml"), "--sweep.store", str(store), "--sweep.directory"]
    for _ in range(2):
        assert sweep([*argv, str(tmp_path / "other")]) == 0
    assert len(list((store / "sweeps").iterdir())) == 2
    capsys.readouterr()
    assert main([str(store), "--json"]) == 0
    found = {Path(each["directory"]) for each in json.loads(capsys.readouterr().out)["sweeps"]}
    assert found == {results / "sweeps" / "grid", tmp_path / "other" / "grid"}


@pytest.mark.parametrize(("rows", "ending"), [(10, ".csv"), (20_000, ".csv.gz")])
def test_a_long_table_is_compressed(rows, ending):
    frame = polars.DataFrame({"a": range(rows), "b": [[0.5, 1.5]] * rows})
    download = csv_download(frame)
    assert download.ending == ending
    content = base64.b64decode(download.uri.split(",")[1])
    read = polars.read_csv(gzip.decompress(content) if rows > 10 else content)
    assert read["a"].to_list() == list(range(rows))
    assert [json.loads(text) for text in read["b"]] == frame["b"].to_list()


def test_findings_as_csv():
    download = csv_download([Finding("gain", Estimate(2.0, 1.0, 4.0, 5, 7, note="a note"), "points", "confirmed")])
    (row,) = polars.read_csv(base64.b64decode(download.uri.split(",")[1])).to_dicts()
    assert row == {
        "what": "gain", "value": 2.0, "low": 1.0, "high": 4.0, "unit": "points", "n_parents": 5, "n_pairs": 7,
        "verdict": "confirmed", "note": "a note",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["gains.parquet", "results.parquet", "sweep.yaml", "manifest.json", "heatmap.png", "heatmap.svg"]
)
def test_a_damaged_file_is_not_shown(copied, capsys, seed, name):
    """A flipped bit, half of a file, none of it, and no file: one line that names it."""
    path = copied / name
    whole = path.read_bytes()
    flip(path, seed)
    assert name in refused(main, capsys, [str(copied)])
    assert not (copied / "report.html").exists()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        assert name in unreadable(copied)
    path.unlink()
    assert name in unreadable(copied)
    path.write_bytes(whole)
    assert len(find_sweeps([copied], all_studies())) == 1


@pytest.mark.parametrize("name", ["frame.parquet", "figure.svg", "manifest.json"])
def test_a_damaged_study_is_not_shown(copied, capsys, seed, name):
    home = study_of(copied, "connectivity", {"frame": polars.DataFrame({"a": [1.0] * 50})})
    (home / "figure.svg").write_text("<svg>" + "x" * 100 + "</svg>")
    sealed_again(home)
    flip(home / name, seed)
    said = refused(main, capsys, [str(copied)])
    assert str(home / name) in said
    assert "connectivity again" in said


EARLIER = [
    # (what the study's sweep had, what the sweep has now, the key that the refusal names; none: the study is shown)
    ({}, {}, ""),
    ({"experiment.k": ["1"]}, {}, ""),  # the sweep has k 1 and 2
    ({"experiment.k": ["1", "4"]}, {}, "experiment.k"),
    ({"optimizer.learning_rate": ["0.1"]}, {}, "optimizer.learning_rate"),
    ({}, {"axes.optimizer.learning_rate": "0.05,0.1"}, ""),
    ({"optimizer.momentum": ["0.5"]}, {}, "optimizer.momentum"),
    ({"experiment.after": None}, {}, "experiment.after"),  # a key that is not noted had its default, 10
    ({}, {"experiment.after": "3"}, ""),
    ({}, {"experiment.after": "1ep5it"}, ""),
    ({}, {"experiment.after": "5it"}, "experiment.after"),  # maybe less than an epoch
    ({}, {"experiment.after": "0"}, "experiment.after"),
    ({}, {"axes.experiment.after": "0,3"}, ""),
    ({"schedule.at_average": ['"anneal"']}, {"experiment.after": "3", "schedule.at_average": "anneal"}, "after"),
    ({}, {"experiment.measure": "own,recomputed"}, ""),
    ({}, {"sweep.parents": "0..5"}, ""),
    ({"sweep.parents": ["0", "5"]}, {}, "sweep.parents"),
    ({}, {"sweep.children": "6"}, ""),
    ({"sweep.children": ["4"]}, {}, "sweep.children"),
    ({"sweep.tuples": ["all"]}, {"sweep.tuples": "all", "sweep.children": "3"}, "sweep.children"),
    ({}, {"sweep.tuples": "all", "sweep.children": "4"}, "sweep.tuples"),
    ({"sweep.tuple_size": ["3"], "sweep.children": ["3"]}, {"sweep.children": "4"}, "sweep.tuple_size"),
    ({}, {"sweep.alphas": "0.25,0.5"}, ""),  # the plain mean is at 0.5
    ({"sweep.alphas": ["0.25"]}, {"sweep.alphas": "0.25,0.75"}, ""),
    ({}, {"sweep.alphas": "0.25,0.75"}, "sweep.alphas"),
    ({"engine.precision": None}, {}, ""),  # auto, which was fp32 there
    ({}, {"engine.precision": "auto"}, ""),
    ({"engine.precision": ['"bf16"']}, {}, "engine.precision"),
    ({"engine.precision": None}, {"axes.engine.precision": "bf16,fp32"}, ""),
    ({}, {"axes.engine.precision": "bf16,fp16"}, "engine.precision"),
]


@pytest.mark.parametrize(("earlier", "now", "named"), EARLIER)
def test_a_study_of_an_earlier_sweep_is_shown_where_that_is_a_part_of_it(results, copied, earlier, now, named):
    arguments = ["--config", str(results / "grid.yaml")]
    then = deciding(read_sweep_request(arguments).spec)
    decided = {name: values for name, values in {**then, **earlier}.items() if values is not None}
    spec = read_sweep_request([*arguments, *(f"--{key}={value}" for key, value in now.items())]).spec
    (copied / "sweep.yaml").write_text(sealed_yaml(sweep_to_yaml(spec)))
    sealed_again(copied)
    about = json.loads((copied / "manifest.json").read_text())
    same = {name: about[name] for name in ("dataset", "inputs", "precision")}
    empty_study(copied, deciding=decided, **same)
    if named:
        said = unreadable(copied)
        assert re.search(rf"another [a-z.]*{named} ", said)
        assert "governance again" in said
    else:
        (found,) = find_sweeps([copied], all_studies())
        assert list(found.studies) == ["governance"]


@pytest.mark.parametrize("now", ["auto", "fp32"])
def test_a_study_of_auto_on_another_machine_is_refused(results, copied, now):
    """There it was bf16, here it is fp32."""
    spec = read_sweep_request(["--config", str(results / "grid.yaml"), f"--engine.precision={now}"]).spec
    (copied / "sweep.yaml").write_text(sealed_yaml(sweep_to_yaml(spec)))
    sealed_again(copied)
    about = json.loads((copied / "manifest.json").read_text())
    decided = {name: values for name, values in deciding(spec).items() if name != "engine.precision"}
    empty_study(copied, deciding=decided, precision="bfloat16", dataset=about["dataset"], inputs=about["inputs"])
    assert "engine.precision" in unreadable(copied)


@pytest.mark.parametrize("noted", ["fp32", "bf16"])
def test_a_store_on_which_auto_is_another_precision_is_refused(results, tmp_path, capsys, noted):
    """The results that are there by now were made on another store."""
    store = Path(shutil.copytree(results / "store", tmp_path / "store"))
    path = store / "sweeps" / "grid.yaml"
    text = path.read_text().rpartition("\n#")[0].replace('precision: "fp32"', 'precision: "auto"')
    path.write_text(sealed_yaml(text))
    write_sealed(store / "precision.json", {"auto": noted})
    if noted == "fp32":
        assert main([str(store), "--out", str(tmp_path / "report.html")]) == 0
    else:
        assert "engine.precision" in refused(main, capsys, [str(store)])


def test_a_study_of_other_files_is_refused(copied, capsys):
    """Of a replaced dataset, on an axis too, and of replaced weights."""
    about = json.loads((copied / "manifest.json").read_text())
    assert len(about["inputs"]) == 1
    home = empty_study(copied, dataset={"sha256": {"train": "0" * 64}})
    assert "another dataset " in refused(main, capsys, [str(copied)])
    shutil.rmtree(home)
    home = empty_study(copied, dataset=about["dataset"], inputs=["0" * 64])
    assert "model.weights" in refused(main, capsys, [str(copied)])
    shutil.rmtree(home)
    empty_study(copied, dataset=about["dataset"])  # an earlier version noted none
    assert main([str(copied)]) == 0


def empty_study(sweep: Path, **about) -> Path:
    """A study of it that found nothing."""
    types = {name: column.type for name, column in all_studies()["governance"].columns["correlations"].items()}
    return study_of(sweep, "governance", {"correlations": polars.DataFrame(schema=types)}, **about)


def test_a_sweep_noted_in_the_store_with_a_flipped_bit_or_without_its_checksum_is_refused(
    results, tmp_path, capsys, seed
):
    store = Path(shutil.copytree(results / "store", tmp_path / "store"))
    path = store / "sweeps" / "grid.yaml"
    unsealed = path.read_text().rpartition("\n#")[0]
    flip(path, seed)
    assert str(path) in refused(main, capsys, [str(store)])
    path.write_text(unsealed)
    assert str(path) in refused(main, capsys, [str(store)])


def test_bad_targets_are_one_line(results, tmp_path, capsys):
    assert "no such directory" in refused(main, capsys, [str(tmp_path / "nowhere")])
    assert "no gains.parquet" in refused(main, capsys, [str(tmp_path)])
    assert "no such directory" in refused(main, capsys, [str(results / "grid.yaml")])
    target = results / "sweeps" / "grid"
    assert "is a directory" in refused(main, capsys, [str(target), "--out", str(tmp_path)])
    (tmp_path / "file").write_text("")
    assert "file" in refused(main, capsys, [str(target), "--out", str(tmp_path / "file" / "x.html")])
    shutil.copytree(results / "store" / "sweeps", tmp_path / "store" / "sweeps")
    path = tmp_path / "store" / "sweeps" / "grid.yaml"
    text = path.read_text().rpartition("\n#")[0].replace(str(results / "sweeps"), str(tmp_path / "moved"))
    path.write_text(sealed_yaml(text))
    assert "its results are not at" in refused(main, capsys, [str(tmp_path / "store")])
    path.write_text(sealed_yaml(text.replace("learning_rate: 0.05", "learning_rate: 0.1")))
    (tmp_path / "moved").symlink_to(results / "sweeps")
    said = refused(main, capsys, [str(tmp_path / "store")])  # a later sweep of the same name
    assert str(path) in said
    assert "optimizer.learning_rate" in said


@pytest.mark.parametrize("noted", ["[1]", "[1, 2, 3]"])
def test_a_store_whose_sweep_has_more_or_fewer_cells_by_now_is_refused(results, tmp_path, capsys, noted):
    """What the store was made for is neither a part of what is there nor more than it."""
    shutil.copytree(results / "store", tmp_path / "store")
    path = tmp_path / "store" / "sweeps" / "grid.yaml"
    text = path.read_text().rpartition("\n#")[0]
    assert text.count("experiment.k: [1, 2]") == 1
    path.write_text(sealed_yaml(text.replace("experiment.k: [1, 2]", f"experiment.k: {noted}")))
    assert "another experiment.k " in refused(main, capsys, [str(tmp_path / "store")])

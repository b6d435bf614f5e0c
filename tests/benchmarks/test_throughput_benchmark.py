"""The throughput benchmark on a tiny network: its tables, its files, and what it says of who could not run."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.options import names, numbers, parse
from benchmarks.peers.engines import engine_names
from fastwi.config.schema import EngineConfig
from fastwi.engine.choose import build_engine

ROOT = Path(__file__).parents[2]


def test_a_small_run_writes_its_results(tmp_path, digits_directory):
    contestants = "usual,stock-graphs,vmap-eager,streams,loop,again"
    command = [sys.executable, "-m", "benchmarks.throughput", f"--data={digits_directory}", f"--out={tmp_path}"]
    command += ["--device=cpu", "--members=1,2", f"--contestants={contestants}", "--width=0.25", "--batch=8"]
    command += ["--batches=2", "--least=1", "--rounds=2", "--workers=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "throughput-cpu.json").read_text())
    found = {(m["contestant"], m["members"]): m for m in told["measurements"]}
    measured = {key for key, m in found.items() if "images_per_s_median" in m}
    of_each_m = {"vmap, eager", "fastwi loop", "fastwi loop, again"}
    assert measured == {("usual script", 1)} | {(name, M) for name in of_each_m for M in (1, 2)}
    assert "GPU" in found["CUDA streams", 1]["not_measured"]
    assert "GPU" in found["best stock loop, CUDA graphs", 2]["not_measured"]
    for key in measured:
        m = found[key]
        low, high = m["images_per_s_quartiles"]
        assert 0 < low <= m["images_per_s_median"] <= high
        # Two steps of 8 images of one network a round, or one step of 8 images of each of two.
        assert m["images_a_round"] == 16
        assert len(m["seconds"]) == m["rounds"] == 2
        floors = told["settings"]["floors"][f"members_{m['members']}"]["floor_images_per_s"]
        for floor, value in floors.items():
            assert m[f"of_{floor}_floor_%"] == pytest.approx(100 * m["images_per_s_median"] / value)
    assert found["fastwi loop", 2]["best_fastwi_ratio"] == 1
    assert floors.keys() == {"memory", "convolutions"}
    assert (tmp_path / "throughput-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "throughput-cpu.svg").read_text()
    assert all(name in done.stdout for name in of_each_m)


def test_a_deadline_that_is_over_leaves_all_out(tmp_path, digits_directory, capsys):
    arguments = ["--device=cpu", f"--data={digits_directory}", f"--out={tmp_path}", "--batch=8", "--batches=1"]
    assert throughput.main([*arguments, "--contestants=loop,vmap-eager", "--minutes=-1"]) == 0
    assert "not measured, --minutes" in capsys.readouterr().out


def test_unknown_contestants_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        throughput.main(["--contestants=loop,jax"])
    assert stopped.value.code == 2
    assert "jax" in capsys.readouterr().err


def test_engines_are_those_of_the_schema():
    (field,) = (field for field in dataclasses.fields(EngineConfig) if field.name == "name")
    assert {"auto", *engine_names()} == set(field.metadata["choices"])
    assert "auto" not in engine_names()
    assert set(engine_names()) < set(throughput._entries())
    assert callable(build_engine)


def test_numbers_and_names():
    assert numbers("1,2,16") == (1, 2, 16)
    assert names("a, b") == ("a", "b")
    for bad in ("0,1", "2,1", "1,1"):
        with pytest.raises(argparse.ArgumentTypeError):
            numbers(bad)


def test_short_gives_way_to_what_is_given():
    def options(*arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--rounds", type=int, default=9)
        parser.add_argument("--batches", type=int, default=24)
        return parse(parser, arguments, {"rounds": 3, "batches": 4})

    assert (options().rounds, options().batches) == (9, 24)
    assert (options("--short").rounds, options("--short").batches) == (3, 4)
    assert (options("--short", "--rounds=5").rounds, options("--rounds=5", "--short").batches) == (5, 4)

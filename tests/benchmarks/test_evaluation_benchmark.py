"""The evaluation benchmark in pieces: the line is evaluated once in all, and the results say what was run."""

import json

import numpy as np
import pytest

from benchmarks import evaluation


def test_pieces_are_the_line_once(digits_directory):
    task = evaluation.make_task(str(digits_directory), 8, 6, 8, evaluation.pick_device("cpu"), pieces=3)
    pieces = [task.piece(number) for number in range(3)]
    assert all(len(piece) == 2 for piece in pieces)
    assert sorted(alpha for piece in pieces for alpha in piece) == pytest.approx(np.linspace(0, 1, 6))
    assert task.images == 2 * (8 + 8)
    assert task.piece(3) == task.piece(0)
    seen = []
    call = evaluation.in_turn(task, lambda alphas: seen.append(tuple(alphas)))
    for _ in range(3):
        call()
    assert seen == pieces


def test_a_small_run_writes_its_results(tmp_path, digits_directory, capsys):
    arguments = ["--short", "--alphas=4", "--pieces=2", "--images=16", "--batch=8", "--contestants=fastwi,again"]
    arguments += [f"--data={digits_directory}", f"--out={tmp_path}", "--device=cpu"]
    assert evaluation.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "4 alphas x (16 train + 16 test) images" in shown
    assert "2 interleaved rounds of 2 alphas" in " ".join(shown.split())
    assert "was not held to a stock evaluation" in shown
    told = json.loads((tmp_path / "evaluation-cpu.json").read_text())
    assert told["settings"]["pieces"] == 2
    assert [m["contestant"] for m in told["measurements"]] == ["(c) fastwi", "(c) fastwi, again"]
    for m in told["measurements"]:
        assert m["line_s_sum_of_pieces"] == pytest.approx(sum(m["seconds"]))
        assert len(m["seconds"]) == 2
        assert m["of_memory_floor_%"] > 0


@pytest.mark.parametrize("arguments", [["--pieces=4"], ["--contestants=swa"], ["--pieces=0"]])
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        evaluation.main(arguments)
    assert stopped.value.code == 2

"""EL2N scores: closed forms, float64 references on digits, streaming; and files of scores with every damage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference_outputs import GivenLogits, digits, labelled, logits_in_float64, members, trained_resnets
from safetensors.numpy import save_file

from fastwi.analysis.el2n import (
    ExampleScores,
    MeanScore,
    dataset_digest,
    el2n_scores,
    error_norms,
    load_scores,
    member_error_norms,
    save_scores,
    select_highest,
)
from fastwi.data.resident import load_split
from fastwi.errors import UserError
from fastwi.models.resnet import resnet20

ULP = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def resnets(digits_directory):
    return trained_resnets(digits_directory, 3)


def test_closed_forms():
    # K equal logits: (1 - 1/K)^2 + (K - 1)/K^2 = 1 - 1/K. Two classes: sqrt(2) (1 - p of the label).
    for classes in (2, 3, 10, 100):
        flat = error_norms(torch.full((1, classes), 7.0), torch.tensor([classes - 1]))
        assert float(flat) == pytest.approx(math.sqrt(1 - 1 / classes), rel=4 * ULP)
    p_N = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    two = error_norms(torch.stack([p_N, 1 - p_N], dim=1).log(), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(two, math.sqrt(2) * (1 - p_N), rtol=1e-14, atol=0)
    sure = error_norms(torch.tensor([[1000.0, 0.0, 0.0]]).repeat(2, 1), torch.tensor([0, 1]))
    assert sure.tolist() == [0.0, pytest.approx(math.sqrt(2), rel=ULP)]


def test_mean_over_networks_of_a_hand_made_case():
    p_MN = np.array([[0.5, 0.75, 1.0 - 2**-20], [0.25, 0.5, 0.5]])
    engine = GivenLogits(np.log(np.stack([p_MN, 1 - p_MN], axis=-1)))
    found = el2n_scores(engine, members(2), labelled([0, 0, 0], 2))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, math.sqrt(2) * (1 - p_MN).mean(axis=0), rtol=1e-6)  # logits are float32


def test_resnets_against_the_definition_in_float64(resnets):
    engine, population, dataset = resnets
    found = el2n_scores(engine, population, dataset)
    onehot_NK = np.eye(10)[dataset.labels_N.numpy()]
    from_engine, from_modules = np.zeros(len(dataset)), np.zeros(len(dataset))
    for m in range(3):
        for positions, logits in engine.logits(population, m, dataset):
            at = positions.numpy()
            e = np.exp(logits.numpy().astype(np.float64))
            from_engine[at] += np.sqrt(((e / e.sum(1, keepdims=True) - onehot_NK[at]) ** 2).sum(1)) / 3
        e = np.exp(logits_in_float64(resnet20(10), population, m, dataset).numpy())
        from_modules += np.sqrt(((e / e.sum(1, keepdims=True) - onehot_NK) ** 2).sum(1)) / 3
    np.testing.assert_allclose(found, from_engine, rtol=1e-12)
    np.testing.assert_allclose(found, from_modules, atol=1e-4)  # the engine's forward pass is float32
    assert found.min() > 0
    assert found.max() < math.sqrt(2)
    assert found.std() > 0.01


def test_networks_one_at_a_time_are_networks_all_at_once(resnets):
    engine, population, dataset = resnets
    whole = el2n_scores(engine, population, dataset)
    singles = el2n_scores(engine, (population.clone_rows([m]) for m in range(3)), dataset)
    assert np.array_equal(singles, whole)  # the same sums in the same order
    parts = [
        MeanScore.empty(len(dataset)).update(member_error_norms(engine, population, m, dataset)) for m in range(3)
    ]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged.networks == 3
    np.testing.assert_allclose(merged.mean_N, whole, rtol=4 * ULP)


@settings(deadline=None)
@given(
    scores_MN=arrays.arrays(np.float64, st.tuples(st.integers(3, 8), st.integers(1, 5)), elements=st.floats(0, 1.5))
)
def test_the_streaming_mean_is_the_mean_and_merging_is_associative(scores_MN):
    def of(rows):
        value = MeanScore.empty(scores_MN.shape[1])
        for row in rows:
            value = value.update(row)
        return value

    bound = len(scores_MN) * ULP
    np.testing.assert_allclose(of(scores_MN).mean_N, scores_MN.mean(axis=0), rtol=bound, atol=1e-300)
    a, b, c = of(scores_MN[:1]), of(scores_MN[1:2]), of(scores_MN[2:])
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left.networks == right.networks == len(scores_MN)
    np.testing.assert_allclose(left.mean_N, right.mean_N, rtol=bound, atol=1e-300)
    assert np.array_equal(a.merge(MeanScore.empty(scores_MN.shape[1])).mean_N, a.mean_N)


def test_what_gives_no_score_is_refused():
    with pytest.raises(UserError, match="no network was given"):
        el2n_scores(GivenLogits(np.zeros((1, 1, 2))), [], labelled([0], 2))
    engine = GivenLogits([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [math.nan, 0.0]]])
    with pytest.raises(UserError, match="network 1: its score of image 1 is not finite"):
        el2n_scores(engine, members(2), labelled([0, 0], 2))
    with pytest.raises(UserError, match="different datasets"):
        MeanScore.empty(2).merge(MeanScore.empty(3))


@settings(deadline=None)
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, math.inf]), min_size=1, max_size=30), data=st.data())
def test_the_highest_are_kept(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    skip = data.draw(st.integers(0, len(scores) - count))
    ranked = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
    assert select_highest(scores, count, skip).tolist() == sorted(ranked[skip : skip + count])


@pytest.mark.parametrize(("count", "skip"), [(0, 0), (4, 0), (2, 2), (1, -1)])
def test_more_than_there_is_cannot_be_kept(count, skip):
    with pytest.raises(UserError, match="there are 3 images"):
        select_highest([0.1, 0.2, 0.3], count, skip)


# Files


@pytest.fixture
def saved(tmp_path, digits_directory, seed):
    dataset = digits(digits_directory)
    values = np.random.default_rng(seed).random(len(dataset))
    scores = ExampleScores("el2n", values, dataset_digest(dataset), {"epoch": 10, "seeds": [0, 1, 2], "model": "é"})
    path = tmp_path / "new" / "el2n.safetensors"
    save_scores(scores, path)
    return path, scores, dataset


def assert_refused(path, *words, **expected):
    with pytest.raises(UserError) as refusal:
        load_scores(path, **expected)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_scores_and_kept_positions_come_back(saved, tmp_path):
    path, scores, dataset = saved
    loaded = load_scores(path, dataset, "el2n")
    assert np.array_equal(loaded.values, scores.values)
    assert (loaded.kind, loaded.dataset_sha256, loaded.source) == ("el2n", scores.dataset_sha256, scores.source)
    kept = ExampleScores("kept:el2n", select_highest(scores.values, 20), scores.dataset_sha256, {"count": 20})
    save_scores(kept, tmp_path / "kept.safetensors")
    again = load_scores(tmp_path / "kept.safetensors", dataset, "kept:el2n")
    assert again.values.dtype == np.int64
    assert np.array_equal(again.values, kept.values)
    save_scores(ExampleScores("forgetting", np.array([1.0, math.inf]), "0" * 64), tmp_path / "infinite")
    assert load_scores(tmp_path / "infinite").values.tolist() == [1.0, math.inf]


def test_the_digest_of_a_whole_split_is_the_card_s(digits_directory):
    dataset, card = load_split(digits_directory, "train", torch.device("cpu"))
    assert dataset_digest(dataset) == card.sha256["train"]


def test_another_dataset_or_kind_is_refused(saved, digits_directory):
    path, _, _ = saved
    whole, card = load_split(digits_directory, "train", torch.device("cpu"))
    assert_refused(path, f"this one is {card.sha256['train'][:12]}", "compute the scores again", dataset=whole)
    assert_refused(path, "holds 'el2n', not 'forgetting'", kind="forgetting")


def test_every_damaged_byte_is_refused(saved):
    path, scores, _ = saved
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(header + 16), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        try:
            loaded, refusal = load_scores(path), ""
        except UserError as error:
            loaded, refusal = None, str(error)
        if loaded is None:
            assert "\n" not in refusal, place
        else:  # only white space at the header's end may change unseen
            assert whole[place : place + 1] == b" ", place
            assert np.array_equal(loaded.values, scores.values)
    for length in (0, 7, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(path, "compute the scores again")
    path.write_bytes(whole)
    assert np.array_equal(load_scores(path).values, scores.values)


def test_foreign_and_missing_files_are_refused(tmp_path, saved):
    assert_refused(tmp_path / "none", "no such file")
    np.savez(tmp_path / "scores.npz", values=np.zeros(3))
    assert_refused(tmp_path / "scores.npz", "damaged or no safetensors file")
    save_file({"values": np.zeros(3)}, tmp_path / "foreign")
    assert_refused(tmp_path / "foreign", "not a file of scores")
    mine = {"format": "fastwi.example_scores", "version": "1"}
    save_file({"other": np.zeros(3)}, tmp_path / "other", mine)
    assert_refused(tmp_path / "other", "instead of values")
    save_file({"values": np.zeros(3, dtype=np.float32)}, tmp_path / "narrow", mine)
    assert_refused(tmp_path / "narrow", "neither float64 nor int64")
    save_file({"values": np.zeros(3)}, tmp_path / "unsigned", mine)
    assert_refused(tmp_path / "unsigned", "checksum")


def test_what_cannot_be_written_leaves_the_earlier_file(saved, monkeypatch):
    path, scores, dataset = saved
    for wrong in (np.zeros(3, dtype=np.float32), np.zeros((2, 2))):
        with pytest.raises(UserError, match="scores are float64"):
            save_scores(ExampleScores("el2n", wrong, ""), path)
    for source in ({"epoch": math.nan}, {"where": path}):
        with pytest.raises(UserError, match="cannot be written as JSON"):
            save_scores(ExampleScores("el2n", np.zeros(3), "", source), path)

    def interrupted(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_scores(ExampleScores("el2n", np.zeros(3), ""), path)
    assert np.array_equal(load_scores(path, dataset).values, scores.values)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

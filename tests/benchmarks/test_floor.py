"""The floors: counts that are known, and arithmetic on timings that are made up."""

import pytest
import torch

from benchmarks.floor import EVALUATION_PASSES, PASSES, convolution_run, convolutions, floors_of, winograd_run
from benchmarks.timing import Timing
from fastwi.kernels.cpu import library
from fastwi.models.registry import build_model

IMAGE = torch.Size([32, 32, 3])


def test_the_convolutions_of_resnet20():
    network = build_model("resnet20", 10).train()
    shapes, outputs = convolutions(network, IMAGE)
    assert outputs == 188_416
    assert sum(shapes.values()) == 19
    assert sum(shape.first for shape in shapes) == 1
    assert sorted(shapes.values()) == [1, 1, 1, 5, 5, 6]
    per_output = {shape: shape.channels_in * shape.kernel[0] * shape.kernel[1] for shape in shapes}
    at_output = {s: s.channels_out * (s.height // s.stride[0]) * (s.width // s.stride[1]) for s in shapes}
    linear = 640
    assert sum(shapes[s] * per_output[s] * at_output[s] for s in shapes) + linear == pytest.approx(40.55e6, rel=1e-3)
    assert network.training, "the network that was asked about is left as it was"


@pytest.mark.parametrize("training", [True, False])
def test_floors_follow_from_timings(training):
    batch, dtype = 2, torch.bfloat16
    network = build_model("resnet20", 10, 0.25)
    floors = floors_of(network, torch.Size([8, 8, 3]), batch, torch.device("cpu"), dtype, training)
    every = {name: Timing((0.5,)) for name in floors.runs}
    # One order of each layer twice as fast: the faster one counts.
    every |= {name: Timing((0.25,)) for name in every if name.endswith("channels-last")}
    bounds = floors.images_per_s(every)
    copied = 2 * floors.copy.source.nbytes / 0.5
    passes = PASSES["both gradients in one kernel"] if training else EVALUATION_PASSES
    assert bounds["memory"] == pytest.approx(copied / (passes * 2 * floors.outputs))
    assert bounds["convolutions"] == pytest.approx(batch / (19 * 0.25))
    said = floors.settings(every)
    assert said["floor_images_per_s"] == bounds
    assert ("memory_floor_images_per_s_by_scheme" in said) == training
    assert floors.prepare().keys() == floors.runs.keys()


def test_what_is_timed_is_the_convolution(seed):
    shapes, _ = convolutions(build_model("resnet20", 10, 0.25), torch.Size([8, 8, 3]))
    for shape in shapes:
        for layout in (torch.contiguous_format, torch.channels_last):
            y_NCHW = convolution_run(shape, 3, torch.float32, layout, training=False)()
            height, width = shape.height // shape.stride[0], shape.width // shape.stride[1]
            assert y_NCHW.shape == (3, shape.channels_out, height, width)
            assert y_NCHW.is_contiguous(memory_format=layout)
            assert not y_NCHW.requires_grad
            convolution_run(shape, 3, torch.float32, layout, training=True)()


@pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")
def test_fastwis_own_convolution_is_a_way_too():
    shapes, _ = convolutions(build_model("resnet20", 10), IMAGE)
    runs = {shape: winograd_run(shape, 2, torch.float32, training=False) for shape in shapes}
    assert {(s.channels_in, s.channels_out, s.stride) for s, run in runs.items() if run is not None} == {
        (16, 16, (1, 1)),
        (32, 32, (1, 1)),
        (64, 64, (1, 1)),
    }
    for shape, run in runs.items():
        if run is not None:
            assert run().shape == (2, shape.channels_out, shape.height, shape.width)
            dx, dweight = winograd_run(shape, 2, torch.float32, training=True)()
            assert dx.shape == (2, shape.channels_in, shape.height, shape.width)
            assert dweight.shape == (shape.channels_out, shape.channels_in, 3, 3)
            assert winograd_run(shape, 2, torch.bfloat16, training=True) is None
    floors = floors_of(build_model("resnet20", 10), IMAGE, 2, torch.device("cpu"), torch.float32, True)
    every = {name: Timing((0.5 if not name.endswith("winograd") else 0.1,)) for name in floors.runs}
    assert floors.images_per_s(every)["convolutions"] == pytest.approx(2 / (16 * 0.1 + 3 * 0.5))

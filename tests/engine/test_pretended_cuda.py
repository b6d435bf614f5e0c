"""The pretended device refuses each thing that a GPU or a capture of its work refuses, and nothing else."""

import pytest
import torch
from pretended_cuda import Graph, PretendedCuda, Refused, Stream
from torch import Tensor

from fastwi.config.schema import OptimizerConfig
from fastwi.kernels.augment import augment_many
from fastwi.kernels.sgd import sgd_

READS = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "copy to the CPU": lambda x: torch.zeros(2, 3).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": torch.nonzero,
}
NOT_CAPTURED = READS | {
    "a mask": lambda x: x[x > 0],
    "a mask that is set": lambda x: x.index_put_((x > 0,), torch.ones((), device="cuda")),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": torch.unique,
    "copy from the CPU": lambda x: x.copy_(torch.zeros(2, 3)),
    "a tensor on the CPU": lambda _: torch.zeros(3),
    "a scalar on the CPU": lambda x: x * torch.tensor(2.0),
    "a sequence": lambda _: torch.tensor([1.0], device="cuda"),
    "synchronize": lambda _: torch.cuda.synchronize(),
}
CAPTURED = {
    "arithmetic": lambda x: (x * 2 + x.sum(0, keepdim=True)).clamp_(min=0),
    "views": lambda x: x.t()[1:].reshape(-1).view(2, 2),
    "factories": lambda x: torch.zeros(3, device=x.device) + torch.arange(3, device="cuda") + x.new_ones(3),
    "gathers": lambda x: x.index_select(1, torch.zeros(1, dtype=torch.int64, device="cuda")),
    "where": lambda x: torch.where(x > 0, 0.5, x),
}


def captured(cuda: PretendedCuda, function) -> Graph:
    x = torch.zeros(2, 3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        function(x)
    assert cuda.graphs[-1] is graph
    return graph


@pytest.mark.parametrize("name", READS)
def test_reads_by_the_host_are_noted(cuda, name):
    x = torch.zeros(2, 3, device="cuda")
    assert x.device == torch.device("cuda", 0)
    assert cuda.reads == []
    READS[name](x)
    assert len(cuda.reads) == 1


@pytest.mark.parametrize("name", NOT_CAPTURED)
def test_refused_in_a_capture(cuda, name):
    with pytest.raises(Refused):
        captured(cuda, NOT_CAPTURED[name])
    torch.cuda.synchronize()  # the capture has ended


@pytest.mark.parametrize("name", CAPTURED)
def test_captured(cuda, name):
    assert captured(cuda, CAPTURED[name]).launches
    assert cuda.reads == []


def test_tensors_on_the_cpu_among_those_of_the_gpu(cuda):
    x = torch.zeros(3, device="cuda")
    assert (x + torch.tensor(1.0)).device == x.device  # as torch has it
    for refused in (
        lambda: x + torch.zeros(3),
        lambda: x[torch.tensor([0])],
        lambda: torch.stack([x, torch.zeros(3)]),
    ):
        with pytest.raises(Refused, match="on the CPU among"):
            refused()
    assert (torch.zeros(3) + 1).device.type == "cpu"


def test_a_backward_pass_is_seen(cuda):
    def reads(x: Tensor) -> None:
        x = x.requires_grad_()
        x.register_hook(lambda gradient: gradient * float(gradient.sum()))
        torch.autograd.grad((x * x).sum(), x)

    with pytest.raises(Refused, match="the host waits"):
        captured(cuda, reads)


def test_streams_fork_from_the_captures_own_and_are_joined(cuda):
    def step(x: Tensor, forked: bool = True, joined: bool = True) -> None:
        here, other = torch.cuda.current_stream(), Stream()
        if forked:
            other.wait_stream(here)
        with torch.cuda.stream(other):
            x.add_(1)
        if joined:
            here.wait_stream(other)

    assert len(captured(cuda, step).launches) == 1
    with pytest.raises(Refused, match="does not wait for the capture's"):
        captured(cuda, lambda x: step(x, forked=False))
    with pytest.raises(Refused, match="does not wait for all others"):
        captured(cuda, lambda x: step(x, joined=False))


def test_what_changes_from_step_to_step_shows(cuda):
    """A number of Python, a tensor elsewhere, a shape, another order; and not where intermediate results are."""
    kept, other = torch.zeros(4, 2, device="cuda"), torch.zeros(4, 2, device="cuda")

    def launches(rate: float = 0.5, into: Tensor = kept, rows: int = 4, ahead: int = 0) -> list:
        for _ in range(ahead):
            torch.zeros(1000, device="cuda")
        return captured(cuda, lambda _: into[:rows].add_((into[:rows] + 1) * rate)).launches

    assert launches() == launches(ahead=3)
    assert len({str(launches(*each)) for each in ((), (0.25,), (0.5, other), (0.5, kept, 3))}) == 4


SIZES = {"M": 2, "P": 2052, "D": 5, "S": 6}


def sgd(**changed) -> None:
    M, P = SIZES["M"], SIZES["P"]
    given = {name: torch.zeros(M, P, device="cuda") for name in ("weights", "gradient", "momentum")}
    given |= {"rate": torch.zeros(M, device="cuda"), "low": torch.zeros(M, P, device="cuda", dtype=torch.bfloat16)}
    given |= changed
    sgd_(*(given[name] for name in ("weights", "gradient", "momentum", "rate")), OptimizerConfig(), given["low"])


def augment(**changed) -> None:
    given = {
        "images": torch.zeros(SIZES["D"], 4, 4, 3, dtype=torch.uint8, device="cuda"),
        "order": torch.zeros(SIZES["M"], SIZES["S"], dtype=torch.int64, device="cuda"),
        "table": torch.zeros(3, 256, device="cuda"),
    } | changed
    augment_many(given["images"], given["order"], None, None, given["table"], 0, None, 3)


def test_launches_of_kernels_are_checked(cuda):
    sgd()
    augment()
    assert cuda.counts()["sgd_kernel"] == cuda.counts()["augment_kernel"] == 1
    wide = torch.zeros(2, 2056, device="cuda")
    sgd(gradient=wide[:, :2052])  # rows may be apart, and then are less aligned
    sgd(gradient=wide[:, 1:2053])
    with pytest.raises(Refused, match="low_MP on the CPU"):
        sgd(low=torch.zeros(2, 2052, dtype=torch.bfloat16))
    with pytest.raises(Refused, match="gradient_MP with the strides"):
        sgd(gradient=torch.zeros(2052, 2, device="cuda").t())
    with pytest.raises(Refused, match=r"momentum_MP of shape \(2, 2048\)"):
        sgd(momentum=torch.zeros(2, 2048, device="cuda"))
    with pytest.raises(Refused, match="table_C256"):
        augment(table=torch.zeros(1, 256, device="cuda"))
    with pytest.raises(Refused, match="order_MS on the CPU"):
        augment(order=torch.zeros(2, 6, dtype=torch.int64))


def test_claims_of_alignment_are_checked(cuda, monkeypatch):
    odd = torch.zeros(2, 2056, device="cuda")[:, 1:2053]
    sgd(gradient=odd)
    monkeypatch.setattr("fastwi.kernels.sgd.row_alignment", lambda most, *_: most)
    sgd()
    with pytest.raises(Refused, match="which ALIGN=16 does not divide"):
        sgd(gradient=odd)


def test_arguments_of_kernels_are_counted(cuda):
    from fastwi.kernels.sgd import sgd_kernel

    x = torch.zeros(2, 4, device="cuda")
    for values, options in (((x,), {"num_warps": 4}), ((x,) * 30, {}), ((x,), {"unknown": 1})):
        with pytest.raises(Refused, match="sgd_kernel takes"):
            sgd_kernel[(1,)](*values, **options)
    with pytest.raises(Refused, match="the grid"):
        sgd_kernel[(1, 70_000)](*(x,) * len(sgd_kernel.arg_names))

"""What torch's Inductor makes of a network for a GPU that is not there: its own generated code, counted.

The forward and backward pass of a member of the `graph` engine are traced on the CPU, with the memory layout of a
population's rows, and compiled as for an H100; nothing of it runs. So launches, copies and layouts are those of
Inductor's choice. A convolution counts as one launch each way, though cuDNN may need more.

A process imports this module alone: torch answers in it as on a machine with a GPU.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretended import pretend_driver
from benchmarks.runner import Report, benchmark

H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    max_threads_per_block=1024, is_integrated=False, gcnArchName="", uuid="0", clock_rate=1980000,
    memory_clock_rate=2619000, memory_bus_width=5120,
)  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """A compiled pass: kernels by kind, and calls of torch's own operations."""

    kernels: Counter[str]
    calls: Counter[str]
    other_layouts: int
    """Outputs of convolutions that are not channels-last."""

    @property
    def launches(self) -> int:
        """Kernels and calls."""
        return self.kernels.total() + self.calls.total()


@benchmark
def main(report: Report, model: str = "resnet20", width: float = 1.0, batch: int = 128, image: int = 32) -> None:
    """A table of what each pass of a member launches, in bf16."""
    from fastwi.models.registry import build_model

    for name, made in passes(build_model(model, 10, width), batch, image).items():
        rows = [{"launched": kind, "times": times} for kind, times in (made.kernels + made.calls).most_common()]
        title = f"{name}: {made.launches} launches, {made.other_layouts} outputs of convolutions not channels-last"
        whole = {"launches": made.launches, "other_layouts": made.other_layouts}
        found: list[dict[str, Any]] = [whole, *rows]
        report.add(title, rows, [{"pass": name, **each} for each in found])


def passes(network: nn.Module, batch: int, image: int) -> dict[str, Pass]:
    """ "forward" and "backward" of a member in bf16, on images of `image` pixels on a side."""
    graphs = _traced(network, batch, image)
    _pretend()
    return {name: _counted(_code(*graphs[name], name == "backward")) for name in ("forward", "backward")}


def _traced(network: nn.Module, batch: int, image: int) -> dict[str, tuple[Any, list[Any]]]:
    """The graph of each pass as the engine has it compiled, and the form of its inputs."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    from fastwi.config.schema import Config, EngineConfig, OptimizerConfig
    from fastwi.engine.graph import GraphEngine
    from fastwi.population import Population

    graphs: dict[str, tuple[Any, list[Any]]] = {}

    def inner(graph: Any, inputs: list[Any], is_backward: bool = False, **_: Any) -> Any:
        forms = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in inputs]
        graphs["backward" if is_backward else "forward"] = graph, forms
        run = graph.forward

        def boxed(arguments: list[Any]) -> Any:
            given = list(arguments)
            arguments.clear()
            return run(*given)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    kind = EngineConfig(device="cpu", precision="bf16", backend="eager")
    engine = GraphEngine(network, Config(engine=kind, optimizer=OptimizerConfig(batch_size=batch)))
    members = Population.from_modules([network])
    low_P = members.weights_MP[0].bfloat16()
    rows = {span.name: span.view(low_P if span.name in engine._low else members.weights_MP[0])
            for span in members.layout.parameters}  # fmt: skip
    leaves = {name: row.requires_grad_() for name, row in rows.items()}
    state: dict[str, Any] = {**leaves, **members.buffers(0), **dict.fromkeys(engine._counted)}
    x_NCHW = torch.zeros(batch, image, image, 3, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    engine._model.train()
    # What a CPU would have changed in the graph, and the engine's own option on a GPU.
    with config.patch({"freezing": False, "cpp.weight_prepack": False, "force_layout_optimization": True}):
        compiled = torch.compile(
            engine._call, backend=lambda graph, inputs: compile_fx(graph, inputs, inner_compile=inner), dynamic=False
        )
        loss = functional.cross_entropy(compiled(state, x_NCHW), torch.zeros(batch, dtype=torch.int64))
        torch.autograd.grad(loss, list(leaves.values()))
    return graphs


def _code(graph: Any, forms: list[Any], backward: bool) -> str:
    """Inductor's Python for a pass, with its tensors on the GPU."""
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    graph.recompile()
    with mode:
        inputs = [
            torch.empty_strided(form[0], form[1], dtype=form[2], device="cuda:0") if isinstance(form, tuple) else form
            for form in forms
        ]
        FakeTensorProp(graph, mode=mode).propagate_dont_convert_inputs(*inputs)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    values = [getattr(each, "meta", {}).get("val") for each in output.args[0]]
    output.meta["original_output_strides"] = [x.stride() if isinstance(x, Tensor) else None for x in values]
    output.meta["user_visible_output_idxs"] = [
        i for i, x in enumerate(values) if isinstance(x, Tensor) and (backward or i == 0)
    ]
    lowering = GraphLowering(
        graph, example_inputs=inputs, is_inference=False, is_backward=backward, shape_env=None, graph_id=0,
        aot_mode=False, cpp_wrapper=False,
    )  # fmt: skip
    with (
        config.patch({"force_layout_optimization": True, "compile_threads": 1}), V.set_fake_mode(mode),
        V.set_debug_handler(DebugContext()), V.set_graph_handler(lowering),
    ):  # fmt: skip
        lowering.run(*inputs)
        code = lowering.codegen()[0]
    return str(getattr(code, "value", code))


def _counted(code: str) -> Pass:
    kernels = Counter(re.sub(r"_\d+$", "", name) for name in re.findall(r"^\s+(triton_\w+)\.run\(", code, re.M))
    calls = Counter(re.findall(r"= (?:extern_kernels|torch\.ops\.aten)\.(\w+)\W", code))
    calls += Counter(re.findall(r"^\s+extern_kernels\.(\w+)\(", code, re.M))
    others = 0
    made = r"assert_\w+\(\w+, \((\d+, \d+, \d+, \d+)\), \((\d+, \d+, \d+, \d+)\)[^\n]*convolution"
    for sizes, strides in re.findall(made, code):
        (_, C, _, W), (_, *stride) = (tuple(map(int, each.split(", "))) for each in (sizes, strides))
        others += stride != [1, W * C, C]
    return Pass(kernels, calls, others)


def _pretend() -> None:
    """Have torch find an H100 in this process, where it is asked for one to compile for."""
    import torch._dynamo.device_interface as interfaces
    import torch._inductor.scheduler as scheduler
    import torch._inductor.utils as utils
    import torch.utils._triton as triton_utils

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda _=None: H100,
        "get_device_capability": lambda _=None: (9, 0),
        "is_bf16_supported": lambda *_: True,
        "_lazy_init": lambda: None,
    }
    of_interface: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_compute_capability": lambda _=None: 90,
        "get_device_properties": lambda _=None: H100,
        "is_triton_capable": lambda _=None: True,
        "raise_if_triton_unavailable": lambda _=None: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name, answer in of_interface.items():
        setattr(interfaces.CudaInterface, name, staticmethod(answer))
    interfaces.CudaInterface.Worker.get_device_properties = staticmethod(lambda _=None: H100)  # type: ignore
    for module in (scheduler, utils, triton_utils):
        vars(module)["has_triton"] = lambda *_: True
    vars(torch._C)["_conv_determine_backend_memory_format"] = _cudnn_layout
    pretend_driver()


def _cudnn_layout(x: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    """What a convolution of cuDNN gives: channels-last where one of its inputs is."""
    last = any(each.is_contiguous(memory_format=torch.channels_last) for each in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


if __name__ == "__main__":
    sys.exit(main())

"""A CUDA device for tests on any machine: its tensors have shapes, strides and dtypes, and no values.

They are tensors of torch's meta device that answer as "cuda". What is done with them is recorded, and refused where a
GPU would fail; within a capture also where the capture would, or would freeze what is wrong in the next replay.
Triton's kernels are not run: what they assume of their arguments is checked where they are launched.
"""

import contextlib
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastwi.engine import base, captured, device, stacked
from fastwi.kernels import gpu

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
BLOCK = 512  # bytes: what the allocator gives starts on one
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
SIZED_BY_DATA = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach"}
LAUNCH_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}
# Arguments whose rows a kernel takes for aligned to so many bytes.
CLAIMS = {
    "ALIGN": ("weights_MP", "gradient_MP", "momentum_MP"), "LOW_ALIGN": ("low_MP",), "ALIGNED": ("w_MOK", "row_MF"),
}  # fmt: skip
Launch = tuple[Any, ...]


class Refused(Exception):
    """What a GPU does not do, and what a capture refuses or gets wrong."""


class Stream:
    """A stream: captured from when it waits for the capture's own, which has to wait for it in the end."""

    numbers = itertools.count()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.number, self.captured, self.unjoined = next(self.numbers), False, set[Stream]()

    def wait_stream(self, other: "Stream") -> None:
        """Later work on this stream waits for what `other` has now."""
        self.captured |= other.captured
        self.unjoined.discard(other)


class Graph:
    """A captured graph: its launches, and how often it was replayed."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.replays = 0

    def replay(self) -> None:
        """Run it again."""
        self.replays += 1

    def pool(self) -> object:
        """Its memory."""
        return self


class PretendedCuda(TorchDispatchMode):
    """The device. `launches` are those of operations and kernels, `reads` those of the host, of ones or zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.reads: list[str] = []
        self.graphs: list[Graph] = []
        self.stream = Stream()
        self._origin: Stream | None = None  # of a capture
        self._blocks: dict[int, tuple[Any, int]] = {}  # storages by key, kept so that no other has it, and addresses
        self._made: dict[int, int] = {}  # those made in the capture, in order
        self._end = BLOCK

    def counts(self) -> Counter[str]:
        """How many launches there were of what."""
        return Counter(launch[0] for launch in self.launches)

    @contextlib.contextmanager
    def capture(
        self,
        graph: Graph,
        pool: object = None,
        stream: Stream | None = None,
        capture_error_mode: str = "thread_local",
    ) -> Iterator[None]:
        """Refuse what a capture refuses. The graph gets the launches, which are the same in captures of one step."""
        if capture_error_mode != "thread_local":
            raise Refused("copies by other threads, such as the store's, which a capture in global mode forbids")
        outside, self.launches = self.launches, []
        with self.on(stream or Stream()):
            self._origin, self._made = self.stream, {}
            self._origin.captured = True
            try:
                yield
                if self._origin.unjoined:
                    raise Refused("the capture's stream does not wait for all others")
            finally:
                self._origin = None
                graph.launches, self.launches = self.launches, outside
        self.graphs.append(graph)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Launch on `stream`."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def address(self, x: Tensor) -> int:
        """Of its first value."""
        storage = x.untyped_storage()
        if storage._cdata not in self._blocks:
            if self._origin:
                self._made[storage._cdata] = len(self._made)
            self._blocks[storage._cdata] = storage, self._end
            self._end += -(-max(1, storage.nbytes()) // BLOCK) * BLOCK
        return self._blocks[storage._cdata][1] + x.storage_offset() * x.element_size()

    def launch(self, name: str, arguments: Any) -> None:
        """Record a launch, and refuse one that the capture does not see."""
        if self._origin is not None and self.stream is not self._origin:
            if not self.stream.captured:
                raise Refused(f"{name} on a stream that does not wait for the capture's")
            self._origin.unjoined.add(self.stream)
        self.launches.append((name, self.stream.captured, *map(self._frozen, pytree.tree_leaves(arguments))))

    def _frozen(self, value: Any) -> Any:
        """What a graph freezes of an argument: of a tensor where it is and its form, else its value."""
        if not isinstance(value, Tensor):
            return value if isinstance(value, (int, float)) else str(value)
        address, key = self.address(value), value.untyped_storage()._cdata
        place = ("made", self._made[key], value.storage_offset()) if key in self._made else address
        return place, tuple(value.shape), value.stride(), value.dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [x for x in tensors if x.is_meta]
        there = [x for x in tensors if not x.is_meta]
        copies = name in ("_to_copy", "copy_")
        if self._origin is not None:
            self._refuse_in_capture(name, here, bool(there) or kwargs.get("device") == CPU)
        if name in READS and here:
            self.reads.append(name)
            return torch.ones((), dtype=here[0].dtype).item() if name == "_local_scalar_dense" else name != "equal"
        if name == "nonzero" and here:
            self.reads.append(name)
            return here[0].new_empty((0, here[0].dim()), dtype=torch.int64)
        if copies and here and (kwargs.get("device") == CPU or (name == "copy_" and not args[0].is_meta)):
            self.reads.append(name)
            made = torch.zeros(here[0].shape, dtype=kwargs.get("dtype") or here[0].dtype)
            return args[0].copy_(made) if name == "copy_" else made
        if here and not copies and any(x.dim() or name.startswith("index") for x in there):
            raise Refused(f"{name} has a tensor on the CPU among those of the GPU")
        # torch's fused step has no form for meta tensors; it changes its arguments alone.
        result = func(*args, **kwargs) if not here or name != "_fused_sgd_" else None
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if self._origin is not None and any(not x.is_meta for x in made):
            raise Refused(f"{name}: on the CPU, so it is not in the graph")
        made = [x for x in made if x.is_meta]
        for x in made:
            self.address(x)
        if (here or made) and not func.is_view and name not in ALLOCATIONS:
            for _ in range(_kernels(name, args)):
                self.launch(name, (args, kwargs, made))
        return result

    def _refuse_in_capture(self, name: str, here: list[Tensor], there: bool) -> None:
        if name in READS and here:
            raise Refused(f"{name}: the host waits for the GPU")
        by_mask = name in ("index", "index_put_") and any(x.dtype in (torch.bool, torch.uint8) for x in here[1:])
        if name in SIZED_BY_DATA or by_mask or (name == "repeat_interleave" and len(here) == 1):
            raise Refused(f"{name}: a shape depends on data")
        if there:
            raise Refused(f"{name}: on the CPU, so it is not in the graph")

    def check_kernel(
        self, name: str, grid: tuple[int, ...], given: dict[str, Any], rows_apart: bool
    ) -> dict[str, Tensor]:
        """The tensors among the arguments: on the device, and dense, or with dense rows where those may be apart."""
        if not 1 <= len(grid) <= 3 or min(grid) < 1 or grid[0] >= 2**31 or max((*grid[1:], 0)) > 65535:
            raise Refused(f"{name} has the grid {grid}")
        tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        for key, x in tensors.items():
            if not x.is_meta:
                raise Refused(f"{name} gets {key} on the CPU")
            if not (x.is_contiguous() or (rows_apart and (x.dim() < 2 or x[0].is_contiguous()))):
                raise Refused(f"{name} gets {key} with the strides {x.stride()}")
        return tensors

    def launch_kernel(self, kernel: Any, grid: tuple[int, ...], values: Any, options: dict[str, Any]) -> None:
        """Check and record a launch of a Triton kernel."""
        name = kernel.__name__
        given = {**dict(zip(kernel.arg_names, values, strict=False))}
        given |= {key: value for key, value in options.items() if key not in LAUNCH_OPTIONS}
        if len(values) > len(kernel.arg_names) or set(given) != set(kernel.arg_names):
            raise Refused(f"{name} takes {kernel.arg_names}, and gets {len(values)} and {sorted(options)}")
        tensors = self.check_kernel(name, grid, given, any("stride" in key for key in given))
        for key, x in tensors.items():
            for claim, names in CLAIMS.items():
                rows = (self.address(x), x.stride(0) * x.element_size())
                if key in names and claim in given and any(place % int(given[claim]) for place in rows):
                    raise Refused(f"{name} gets {key} at {rows}, which {claim}={given[claim]} does not divide")
        _check_sizes(name, given, tensors)
        self.launch(name, (grid, list(given.values()), options))


def _check_sizes(name: str, given: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Whether tensors have as many values as their names say, where the kernel is given those sizes: x_MRC."""
    letters = {key: int(value) for key, value in given.items() if len(key) == 1 and isinstance(value, int)}
    for letter, key in (("I", "CI"), ("O", "CO"), ("P", "OH"), ("Q", "OW")):
        if key in given:
            letters[letter] = given[key]
    if "KH" in given:
        letters["K"] = given["KH"] * given["KW"] * given["CI"]
    for key, x in tensors.items():
        suffix = key.rpartition("_")[2]
        if (suffix.startswith("M") and suffix[1:].isupper()) or suffix == "M":
            letters.setdefault("M", len(x))
        parts = re.findall(r"\d+|[A-Z]", suffix)
        if suffix.isupper() and all(part.isdigit() or part in letters for part in parts):
            sizes = [int(part) if part.isdigit() else letters[part] for part in parts]
            if x.numel() != math.prod(sizes):
                raise Refused(f"{name} gets {key} of shape {tuple(x.shape)}, which is to have {sizes}")


def _kernels(name: str, args: Any) -> int:
    """Launches of an operation: a foreach has one where the tensors of each list are alike, else one for each."""
    if not name.startswith("_foreach"):
        return 1
    lists = [part for part in args if isinstance(part, (list, tuple)) and isinstance(part[0], Tensor)]
    one_dtype = all(len({x.dtype for x in part}) == 1 for part in lists)
    one_form = all(len({(x.shape, x.stride()) for x in group}) == 1 for group in zip(*lists, strict=True))
    dense = all(torch.ops.aten.is_non_overlapping_and_dense(x) for x in lists[0])
    return 1 if one_dtype and one_form and dense else len(lists[0])


class _Names(TorchFunctionMode):
    """Has meta tensors answer as CUDA's, and makes them where CUDA's are asked for."""

    def __init__(self, pretended: PretendedCuda) -> None:
        super().__init__()
        self._pretended = pretended

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:
            found = func(*args)
            return CUDA if found == META else found
        if func == Tensor.is_cuda.__get__:
            return args[0].is_meta
        if func == Tensor.data_ptr and args[0].is_meta:
            return self._pretended.address(args[0])
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {key: _meta(value) for key, value in (kwargs or {}).items() if key != "pin_memory"}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META:  # they copy from the CPU
            return func(*args, **(kwargs | {"device": CPU})).to(META)
        return func(*map(_meta, args), **kwargs)


def _meta(value: Any) -> Any:
    is_cuda = isinstance(value, (torch.device, str)) and str(value).partition(":")[0] == "cuda"
    return META if is_cuda else value


@contextlib.contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """Within the block this machine has one CUDA device, for which torch compiles nothing."""
    pytest.importorskip("triton")
    pretended = PretendedCuda()
    properties = SimpleNamespace(name="pretended", total_memory=80 * 2**30, major=9, minor=0)

    def launcher(kernel: Any, grid: Any) -> Any:
        return lambda *values, **options: pretended.launch_kernel(kernel, grid, values, options)

    def launch_halo(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        pretended.check_kernel(kernel.name, grid, {str(place): each for place, each in enumerate(arguments)}, True)
        pretended.launch(kernel.name, (grid, kernel, arguments))

    def refuse_in_capture(*_: Any) -> None:
        if pretended._origin is not None:
            raise Refused("synchronize: the host waits for the GPU")

    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": refuse_in_capture,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (64 * 2**30, properties.total_memory),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 2**30,
        "reset_peak_memory_stats": lambda *_: None,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": lambda *_: pretended.stream,
        "stream": pretended.on,
        "graph": functools.partial(pretended.capture, capture_error_mode="global"),  # torch's default
        "device": lambda _: contextlib.nullcontext(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(gpu, "has_triton", lambda device: device.type == "cuda")
        patch.setattr("triton.runtime.jit.KernelInterface.__getitem__", launcher)
        patch.setattr(captured, "free_memory", lambda _: None)
        for name in ("conv", "backward"):
            patch.setattr(f"fastwi.kernels.halo.{name}.launch", launch_halo)
        for name in ("kernels.halo.build", "engine.halo"):
            patch.setattr(f"fastwi.{name}.missing", lambda _: None)
        for module in (device, base, stacked):
            patch.setattr(module, "compiled", lambda function, device: function)
        names, run_backward = _Names(pretended), torch.autograd._engine_run_backward

        def run_backward_here(*arguments: Any, **more: Any) -> Any:
            with names:  # which torch.autograd.grad has left
                return run_backward(*arguments, **more)

        patch.setattr(torch.autograd, "_engine_run_backward", run_backward_here)
        with names, pretended:
            yield pretended

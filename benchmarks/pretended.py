"""Triton's driver of a GPU that is not there."""

from types import SimpleNamespace

import torch


def pretend_driver(arch: int = 90) -> None:
    """Have Triton compile for GPUs of compute capability `arch`, and prepare launches, which do nothing.

    Each capability is a device, with kernels of its own.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}
    made = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: arch,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_stream=lambda device: 0,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda *arguments: (1, 1, 0, 0, 1024),
            unload_module=lambda module: None,
        ),
    )
    driver.set_active(made)

"""Convolutions by halo tiles: CUDA C++ kernels that are compiled at run time, on a GPU or for the tests on a CPU."""

"""The contestants of the throughput benchmark, one file each: fastwi's engines and what people use instead.

Each has functions (task, members) -> Contestant that raise `benchmarks.task.Unavailable` where they cannot run.
"""

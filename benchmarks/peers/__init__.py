"""The baselines of benchmarks, one file each, and fastwi's engines.

Those of training are functions (task, members) -> Case that raise UserError where they cannot run.
"""

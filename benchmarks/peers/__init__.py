"""The baselines of benchmarks: functions (task, members) -> Case that raise UserError where they cannot run."""

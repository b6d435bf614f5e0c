"""What the studies of `fastwi.analysis.studies` found, as tables and figures: one module a study, of its name."""

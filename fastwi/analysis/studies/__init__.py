"""Studies: one question for a finished sweep each, answered from its store. Module and function have one name."""

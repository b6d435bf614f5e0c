"""Configuration: YAML, command lines and mappings become frozen, checked dataclasses.

`schema` and `sweep` declare every key, `values` checks one, `layers` reads and merges, `read` is what commands and
programs call, `write` turns all of it back into YAML, a hash and the help. No other package touches fastargs.
"""

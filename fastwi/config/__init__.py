"""Configuration: YAML and command-line overrides become frozen, checked dataclasses.

`schema` holds the dataclasses, `read` makes them from a command line or a mapping, `write` turns them back
into YAML and hashes them, `check` refuses what cannot be run. No other package touches fastargs.
"""

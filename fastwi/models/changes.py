"""The sources of users' networks that made the results in a directory: noted in its manifest, and compared."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from fastwi.models.source import source_of

Networks: TypeAlias = dict[str, dict[str, Any]]

NETWORKS = "networks"
"""Where a manifest has `networks_of`."""


def networks_of(names: Iterable[str]) -> Networks:
    """For each of `names` that is a user's own: its digest, and what went into that, by file and package."""
    sources = {name: source_of(name) for name in sorted(set(names))}
    return {name: {"digest": each.digest, "made_of": each.parts()} for name, each in sources.items() if each.digest}


def network_change(manifest: Path, networks: Networks) -> str | None:
    """In words, how the first of `networks` that differs does so from the one noted in `manifest`; or None.

    None too where there is no manifest, or it does not name the networks.
    """
    try:
        noted = json.loads(manifest.read_text())[NETWORKS]
        made = {name: (about["digest"], dict(about["made_of"])) for name, about in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    for name, now in networks.items():
        digest, parts = made.get(name, (now["digest"], {}))
        if digest != now["digest"]:
            made_of = now["made_of"]
            changed = sorted(part for part in {*parts, *made_of} if parts.get(part) != made_of.get(part))
            named = ", ".join(changed[:4]) + (", ..." if len(changed) > 4 else "")
            was = f"{str(digest)[:12]} when they were made"
            return f"the source of {name} was {was}, and is {now['digest'][:12]} (changed: {named})"
    return None

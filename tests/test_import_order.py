"""Imports run one way through the rooms of the package."""

import ast
from pathlib import Path

import fastwi

ROOMS = ["config", "beton", "data", "models", "population", "engine", "experiment", "analysis", "report", "studies"]
RANKS = {room: rank for rank, room in enumerate(ROOMS)} | {"kernels": ROOMS.index("population")}
ALLOWED = {("config", "fastwi.models.names")}  # names of networks, without any network


def test_no_room_imports_a_later_one():
    root, seen = Path(fastwi.__file__).parent, set()
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0]
        if room not in RANKS or path.name == "__main__.py":  # commands may import anything
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if top == "fastwi" and other in RANKS and (room, name) not in ALLOWED:
                    seen.add((room, other))
                    assert RANKS[other] <= RANKS[room], f"{path.relative_to(root)} imports {name}"
    assert ("report", "analysis") in seen

"""Damaged and hostile configurations and command lines, through the commands that read them."""

import random
from pathlib import Path

import fastwi.analyze
import fastwi.sweep
import fastwi.train
from fastwi.config.read import sweep_from_yaml
from fastwi.config.schema import KEYS, Config
from fastwi.config.sweep import NAMES
from fastwi.config.write import sweep_to_yaml, to_yaml
from hostile.mutate import TEXTS, damaged, damaged_text
from hostile.target import Finding, command, odd_file

_OPTIONS = tuple(name for name in NAMES if name.startswith(("sweep.", "analysis.")))
_SHIPPED = Path(__file__).parents[3] / "configs"
_WORDS = (*KEYS, *_OPTIONS, *{key.split(".")[0] + ":" for key in KEYS}, "base: ", "axes:", "sweep:", "analysis:")
_ANALYSES = ("connectivity", "importance", "governance", "controls", "blocks", "plane", "calibration",
             "representation", "curvature", "noise", "rounds", "over_time", "x", "")  # fmt: skip
_MAINS = {"train": fastwi.train.main, "sweep": fastwi.sweep.main, "analyze": fastwi.analyze.main}


class Configs:
    """`fastwi.train`, `fastwi.sweep` and `fastwi.analyze` with `--print-config`."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        for path in _SHIPPED.glob("*.yaml"):
            (directory / path.name).write_text(path.read_text())
        (directory / "complete.yaml").write_text(to_yaml(Config()))
        whole = sweep_from_yaml((_SHIPPED / "digits_k_s_grid.yaml").read_text(), directory=_SHIPPED)
        (directory / "complete_sweep.yaml").write_text(sweep_to_yaml(whole))

    def __init__(self, corpus: Path) -> None:
        self._texts = {path.name: path.read_text() for path in sorted(corpus.glob("*.yaml"))}

    def attempt(self, draw: random.Random, work: Path) -> bool:
        name = draw.choice(list(self._texts))
        for other, text in self._texts.items():
            if other != name and f"base: {other}" in self._texts[name]:
                if draw.random() < 0.2:
                    text = damaged_text(draw, text, _WORDS)
                (work / other).write_bytes(text.encode(errors="surrogatepass"))
        path = work / name
        self._write(draw, path)
        argv = [f"--config={path}"] if draw.random() < 0.97 else []
        argv += self._flags(draw)
        draw.shuffle(argv)
        kind = draw.choice(list(_MAINS))
        study = [draw.choice(_ANALYSES)] if kind == "analyze" else []
        code, shown = command(_MAINS[kind], [*study, *argv, "--print-config"])
        if code == 0 and "Carries out" not in shown and "--help" not in argv and "-h" not in argv:
            # What was printed must be the configuration itself: read again, it prints the same.
            again = work / "again.yaml"
            again.write_text(shown)
            if command(_MAINS[kind], [*study, f"--config={again}", "--print-config"])[1] != shown:
                raise Finding(f"read back it is another configuration:\n{shown[:2000]}")
        return code == 0

    def _write(self, draw: random.Random, path: Path) -> None:
        text, kind = self._texts[path.name], draw.random()
        if kind < 0.01:
            odd_file(draw, path, path.parents[2] / "outside")
        elif kind < 0.15:
            path.write_bytes(damaged(draw, text.encode(), (), [other.encode() for other in self._texts.values()]))
        elif kind < 0.19:
            path.write_bytes(_bomb(draw, text).encode("latin-1", "replace"))
        elif kind < 0.85:
            path.write_bytes(damaged_text(draw, text, _WORDS).encode(errors="surrogatepass"))
        else:
            path.write_text(text)

    def _flags(self, draw: random.Random) -> list[str]:
        flags = []
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2, 4))):
            key = draw.choice(list(KEYS))
            name = draw.choice((key, draw.choice(_OPTIONS), f"axes.{key}"))
            value = draw.choice((*TEXTS, "1", "0.5", "1,2", "[1, 2]", "1..4", "a", "true", "0", "digits"))
            # No argument holds a NUL; bytes that are no UTF-8 arrive as such surrogates.
            value = value.replace("\0", "").replace("\ud800", "\udc80")
            odd = draw.choice((value, f"--{value}", f"-{name}"))
            flags.append(f"--{name}={value}" if draw.random() < 0.95 else odd)
        return flags


def _bomb(draw: random.Random, text: str) -> str:
    """Small files that would be large, deep or endless, and other encodings."""
    deep, wide = draw.choice((50, 900, 5000, 100_000)), draw.choice((10, 300, 3000, 60_000))
    layers = range(draw.choice((5, 9, 30)))
    aliases = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else '1'}]" for n in layers)
    key = draw.choice(list(KEYS))
    section, name = key.split(".")
    endless = f"0..1 step 1e-{draw.randrange(1, 400)}"
    seeds = draw.choice((f"0..{10 ** draw.randrange(1, 20)}", "0.." + "9" * 90, endless))
    base = draw.choice((".", "..", "/", "/dev/zero", "/etc/passwd", "digits.yaml", "a" * 5000, "/proc/self/mem"))
    many = f"children: {10 ** draw.randrange(20)}\n  tuples: all\n  tuple_size: {draw.randrange(10**6)}"
    value = draw.choice((
        "[" * deep + "]" * draw.choice((0, deep)), "{a: " * deep + "}" * draw.choice((0, deep)), "- " * deep,
        "9" * wide, "x" * wide * 10, "[" + "1, " * wide + "1]", str(list(range(wide))),
    ))  # fmt: skip
    return draw.choice((
        aliases, f"{aliases}\naxes: {{{key}: *a4}}", f"{aliases}\nsweep: {{parents: *a4}}",
        f"{section}:\n  {name}: {value}", f"axes:\n  {key}: {value}",
        "\n".join(" " * min(n, 2000) + "a:" for n in range(min(deep, 3000))),
        f"axes:\n  {key}: {seeds}", f"sweep:\n  parents: {seeds}\n  alphas: {seeds}", f"sweep:\n  {many}",
        f"base: {base}", *(text.encode(code).decode("latin-1") for code in ("utf-16", "utf-32", "utf-7")),
        text + "#" * (1 << 20), "\n" * wide + text,
    ))  # fmt: skip

"""Which images of a folder belong to which split and class."""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.trees import FileTree, join
from fastwi.errors import UserError

LAYOUT = "[prefix/]train/<class>/*.png or *.jpg and test/<class>/..."
_ENDINGS = (".png", ".jpg", ".jpeg")
_LEFT_BEHIND = (".DS_Store", "__MACOSX/", "Thumbs.db", "desktop.ini")  # by file managers


@dataclass
class Layout:
    """What a source holds.

    base: the folder with train/, '' for the root. classes: their names, sorted. files: "train" and "test" -> (path,
    label) of each image, by class and by name. warnings: what a user should know of, a line each.
    """

    base: str
    classes: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    warnings: list[str] = field(default_factory=list)


def read_layout(tree: FileTree, source: Path, with_valid: bool) -> Layout:
    """The layout of `tree`; with_valid adds the images of valid/ to those of train/.

    Raises UserError, which names `source`, where it is not `LAYOUT`.
    """
    finder = _Finder(tree, source)
    base = finder.base()
    finder.hidden.clear()  # those beside the splits do not matter
    names = ["train", "test", *(["valid"] if with_valid else [])]
    parts = {name: finder.part(join(base, name)) for name in names}
    layout = Layout(base, tuple(parts["train"]), {"train": [], "test": []})
    _check_names(source, layout)
    for name, classes in parts.items():
        _check_classes(source, layout.classes, tuple(classes), join(base, name))
        files = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
        layout.files["test" if name == "test" else "train"] += files
    hidden = sorted(path for path in finder.hidden if path.lower().endswith((*_ENDINGS, "/")))
    if hidden:
        layout.warnings.append(f"hidden files and folders left out: {len(hidden):,} (such as {hidden[0]})")
    return layout


class _Finder:
    """Lists folders, and keeps the paths of what it left out because it is hidden."""

    def __init__(self, tree: FileTree, source: Path) -> None:
        self._tree = tree
        self._source = source
        self.hidden: list[str] = []

    def base(self) -> str:
        """The one folder, the root or right below it, that holds train/."""
        folders, _ = self._entries("")
        if "train" in folders:
            return ""
        bases = [folder for folder in folders if "train" in self._entries(folder)[0]]
        if not bases:
            raise UserError(f"{self._source}: holds no train/ folder; lay it out as {LAYOUT}")
        if len(bases) > 1:
            found = f"{bases[0]}/train and {bases[1]}/train"
            raise UserError(f"{self._source}: holds {found}; give a source with one of them")
        return bases[0]

    def part(self, part: str) -> dict[str, list[str]]:
        """class -> paths of its images, for one of train, valid, test."""
        parent, _, name = part.rpartition("/")
        if name + "/" not in self._tree.names(parent):
            raise UserError(f"{self._source}: holds no {part}/ folder; lay it out as {LAYOUT}")
        classes, files = self._entries(part)
        strays = [file for file in files if file.lower().endswith(_ENDINGS)]
        if strays:
            raise UserError(f"{self._source}: {part}/{strays[0]}: lies in no class folder; move it into one")
        if not classes:
            raise UserError(f"{self._source}: {part}/ holds no class folders; lay it out as {LAYOUT}")
        return {name: self._class(join(part, name)) for name in classes}

    def _class(self, folder: str) -> list[str]:
        folders, files = self._entries(folder)
        others = [file for file in files if not file.lower().endswith(_ENDINGS)]
        if folders:
            problem = f"{folder}/{folders[0]}/ lies too deep; move its images up into {folder}/"
        elif others:
            problem = f"{folder}/{others[0]}: neither .png nor .jpg; convert or remove it"
        elif not files:
            problem = f"{folder}/ holds no images; add some or remove the class"
        else:
            return [join(folder, file) for file in files]
        raise UserError(f"{self._source}: {problem}")

    def _entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in `folder`, each sorted, without hidden ones."""
        folders, files = [], []
        for name in sorted(self._tree.names(folder)):
            if name in _LEFT_BEHIND or name.startswith("._"):
                continue
            if name.startswith("."):
                self.hidden.append(join(folder, name))
            elif name.endswith("/"):
                folders.append(name[:-1])
            else:
                files.append(name)
        return sorted(folders), files


def _plain(name: str) -> str:
    """A name as people read it: one spelling for each character that Unicode can spell in several ways."""
    return unicodedata.normalize("NFC", name)


def _check_names(source: Path, layout: Layout) -> None:
    """Refuse classes whose names look the same; warn of those that differ in case or spaces alone."""
    seen: dict[str, str] = {}
    for name in layout.classes:
        other = seen.setdefault(_plain(name).casefold().strip(), name)
        if other is not name and _plain(other) == _plain(name):
            raise UserError(f"{source}: has class {name} twice, in two spellings of Unicode; merge the two folders")
        if other is not name:
            same = "their names differ in case or spaces alone"
            layout.warnings.append(f"classes {other!r} and {name!r} are taken as two; {same}")


def _check_classes(source: Path, expected: tuple[str, ...], found: tuple[str, ...], part: str) -> None:
    odd = sorted(set(expected) ^ set(found))
    if len({_plain(name) for name in odd}) < len(odd):
        raise UserError(f"{source}: {part}/ spells class {odd[0]} otherwise in Unicode than train/; rename it")
    if odd:
        holder = f"only train/, not {part}/," if odd[0] in expected else f"{part}/, but not train/,"
        raise UserError(f"{source}: {holder} has class {odd[0]}; all splits need the same classes")

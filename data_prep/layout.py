"""Which images of a folder belong to which split and class."""

import unicodedata
from pathlib import Path
from typing import NoReturn

from data_prep.dataset import is_text
from data_prep.trees import FileTree, join
from fastwi.errors import UserError

LAYOUT = "[prefix/]train/<class>/*.png or *.jpg and test/<class>/..."
_ENDINGS = (".png", ".jpg", ".jpeg")
_LEFT_BEHIND = (".DS_Store", "__MACOSX/", "Thumbs.db", "desktop.ini")  # by file managers


class Layout:
    """What a source holds.

    base: the folder with train/, '' for the root. classes: their names, sorted. files: "train" and "test" -> (path,
    label) of each image, by class and by name. warnings: what a user should know of, a line each.
    """

    def __init__(self, tree: FileTree, source: Path, with_valid: bool) -> None:
        """with_valid adds the images of valid/ to those of train/. Raises UserError for another layout."""
        self._tree = tree
        self._source = source
        self._hidden: list[str] = []
        self.warnings: list[str] = []
        self.base = self._find_base()
        self._hidden.clear()  # those beside the splits do not matter
        train = self._part("train")
        self.classes = tuple(train)
        self._check_names()
        self.files = {"train": _labelled(train), "test": _labelled(self._part("test"))}
        if with_valid:
            self.files["train"] += _labelled(self._part("valid"))
        hidden = sorted(path for path in self._hidden if path.lower().endswith((*_ENDINGS, "/")))
        if hidden:
            self.warnings.append(f"hidden files and folders left out: {len(hidden):,} (such as {hidden[0]})")

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(f"{self._source}: {problem}")

    def _find_base(self) -> str:
        """The one folder, the root or right below it, that holds train/."""
        folders, _ = self._entries("")
        if "train" in folders:
            return ""
        bases = [folder for folder in folders if "train" in self._entries(folder)[0]]
        if not bases:
            self._refuse(f"holds no train/ folder; lay it out as {LAYOUT}")
        if len(bases) > 1:
            self._refuse(f"holds {bases[0]}/train and {bases[1]}/train; give a source with one of them")
        return bases[0]

    def _part(self, name: str) -> dict[str, list[str]]:
        """class -> paths of its images, for one of train, valid, test, with the classes of train."""
        part = join(self.base, name)
        if name + "/" not in self._tree.names(self.base):
            self._refuse(f"holds no {part}/ folder; lay it out as {LAYOUT}")
        classes, files = self._entries(part)
        strays = [file for file in files if file.lower().endswith(_ENDINGS)]
        if strays:
            self._refuse(f"{part}/{strays[0]}: lies in no class folder; move it into one")
        if not classes:
            self._refuse(f"{part}/ holds no class folders; lay it out as {LAYOUT}")
        if name != "train":
            self._check_classes(part, classes)
        return {each: self._class(join(part, each)) for each in classes}

    def _class(self, folder: str) -> list[str]:
        folders, files = self._entries(folder)
        others = [file for file in files if not file.lower().endswith(_ENDINGS)]
        if folders:
            self._refuse(f"{folder}/{folders[0]}/ lies too deep; move its images up into {folder}/")
        if others:
            self._refuse(f"{folder}/{others[0]}: neither .png nor .jpg; convert or remove it")
        if not files:
            self._refuse(f"{folder}/ holds no images; add some or remove the class")
        return [join(folder, file) for file in files]

    def _entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in `folder`, each sorted, without hidden ones."""
        names = [name for name in self._tree.names(folder) if name not in _LEFT_BEHIND and not name.startswith("._")]
        self._hidden += [join(folder, name) for name in names if name.startswith(".")]
        seen = sorted(name for name in names if not name.startswith("."))
        folders = sorted(name[:-1] for name in seen if name.endswith("/"))
        return folders, [name for name in seen if not name.endswith("/")]

    def _check_names(self) -> None:
        """Refuse names that are not UTF-8, or look the same; warn of those that differ in case or spaces alone."""
        seen: dict[str, str] = {}
        for name in self.classes:
            if not is_text(name):
                self._refuse(f"{join(self.base, 'train', name)}/: its name is not UTF-8; rename it, in each split")
            other = seen.setdefault(_plain(name).casefold().strip(), name)
            if other is not name and _plain(other) == _plain(name):
                self._refuse(f"has class {name} twice, in two spellings of Unicode; merge the two folders")
            if other is not name:
                same = "their names differ in case or spaces alone"
                self.warnings.append(f"classes {other!r} and {name!r} are taken as two; {same}")

    def _check_classes(self, part: str, found: list[str]) -> None:
        odd = sorted(set(self.classes) ^ set(found))
        if len({_plain(name) for name in odd}) < len(odd):
            self._refuse(f"{part}/ spells class {odd[0]} otherwise in Unicode than train/; rename it")
        if odd:
            holder = f"only train/, not {part}/," if odd[0] in self.classes else f"{part}/, but not train/,"
            self._refuse(f"{holder} has class {odd[0]}; all splits need the same classes")


def _labelled(classes: dict[str, list[str]]) -> list[tuple[str, int]]:
    return [(path, label) for label, paths in enumerate(classes.values()) for path in paths]


def _plain(name: str) -> str:
    """A name as people read it: one spelling for each character that Unicode can spell in several ways."""
    return unicodedata.normalize("NFC", name)

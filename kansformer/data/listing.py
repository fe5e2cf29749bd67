"""Folders of pictures, listed whole, whatever is wrong with them; nothing is opened or written.

Training refuses a folder by the first of its problems (`refuse`), the doctor shows them all.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kansformer.data.images import is_image_name
from kansformer.errors import UserError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Problem:
    """Why a folder cannot be trained on; `kind` is a fixed word for programs."""

    kind: str
    path: str
    cause: str
    remedy: str


@dataclass
class Split:
    """A folder of class folders: the paths of each class's pictures, sorted, and the rest."""

    folder: Path
    classes: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Listing:
    """A data folder's splits by their names in `SPLIT_FOLDERS`; a flat folder is all "train"."""

    name: str
    splits: dict[str, Split] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    is_flat: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The training split's, sorted; then those that only other splits have."""
        train, *others = (self.splits.get(part, Split(Path())).classes for part in SPLIT_FOLDERS)
        return (*train, *sorted({name for classes in others for name in classes} - set(train)))


def refuse(problems: Sequence[Problem]) -> None:
    """Raises a UserError of the first problem, if there is one."""
    for problem in problems:
        raise UserError(f"{problem.path}: {problem.cause}; {problem.remedy}")


def list_folder(folder: Path) -> Listing:
    """Lists a folder per class, or one with train/ and perhaps val/ and test/ of such folders."""
    listing = Listing(folder.resolve().name)
    below = sorted(Path(e) for e in _scan(folder, listing.problems) if _is_folder(e))
    found = {
        part: next((p for p in below if p.name.lower() in names and _folders_alone(p)), None)
        for part, names in SPLIT_FOLDERS.items()
    }
    places = {part: path for part, path in found.items() if path is not None}
    if not places:
        places = {"train": folder}
        listing.is_flat = True
    elif "train" not in places:
        cause = f"has {next(iter(places.values())).name}/ but no train/"
        listing.problems.append(Problem("no-train", str(folder), cause, "add the folder"))
    if not listing.is_flat:
        listing.ignored += [str(path) for path in below if path not in places.values()]

    known: Collection[str] | None = None
    for part, place in places.items():
        split = list_split(place, known)
        if part == "train":
            known = split.classes.keys()
            if len(known) == 1:
                cause = f"only one class folder ({next(iter(known))})"
                remedy = "a classifier needs two"
                split.problems.insert(0, Problem("one-class", str(place), cause, remedy))
        listing.splits[part] = split
        listing.ignored += split.ignored
        listing.problems += split.problems
    return listing


def list_split(folder: Path, known: Collection[str] | None = None) -> Split:
    """Lists a folder per class, in a fixed order.

    Args:
        known: the classes that there may be; None for any.
    """
    split = Split(folder)
    entries = _scan(folder, split.problems)
    names = sorted(entry.name for entry in entries if _is_folder(entry))
    files = sorted(entry.path for entry in entries if not _is_folder(entry))
    loose = [path for path in files if is_image_name(os.path.basename(path))]
    split.ignored += sorted({*loose, *filter(is_dead_link, files)})
    if not names and not split.problems:
        cause = "it holds pictures but no folders" if loose else "it holds no class folders"
        remedy = (
            "sort the pictures into one folder per class"
            if loose
            else "put one folder of pictures per class there"
        )
        split.problems.append(Problem("no-classes", str(folder), cause, remedy))
    inside = _folders_alone(folder / names[0]) if len(names) > 1 else set()
    if inside and all(_folders_alone(folder / name) == inside for name in names[1:]):
        cause = (
            f"{names[0]} and {names[1]} hold the same folders, so they look like splits and not"
            " like classes"
        )
        remedy = "name them train, val and test, or give one of them"
        split.problems.append(Problem("looks-like-splits", str(folder), cause, remedy))
    for name in names:
        path = str(folder / name)
        if known is not None and name not in known:
            cause = "a class that the training pictures do not have"
            remedy = "rename the folder, or add the class to the training pictures"
            split.problems.append(Problem("unknown-class", path, cause, remedy))
        pictures, ignored, problems = walk(path)
        split.classes[name] = pictures
        split.ignored += ignored
        split.problems += problems
        if not pictures and not problems:
            cause = "no pictures in this class folder"
            remedy = "put some there or remove it"
            split.problems.append(Problem("empty-class", path, cause, remedy))
    return split


def walk(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], list[Problem]]:
    """Paths below a folder, in depth: files with a picture's name, all others, and problems.

    Hidden files and folders are passed over. Folders that are links are not entered: they count
    with the others.
    """
    pictures: list[str] = []
    others: list[str] = []
    problems: list[Problem] = []
    pending: list[str | os.PathLike[str]] = [folder]
    while pending:
        for entry in _scan(pending.pop(), problems):
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif is_image_name(entry.name) and not _is_folder(entry):
                pictures.append(entry.path)
            else:
                others.append(entry.path)
    return sorted(pictures), sorted(others), problems


def walk_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all picture files below a folder, sorted; see `walk`."""
    return walk(folder)[0]


def is_dead_link(path: str) -> bool:
    """Whether a path is a link to something that is not there."""
    return os.path.islink(path) and not os.path.exists(path)


def _scan(folder: str | os.PathLike[str], problems: list[Problem]) -> list["os.DirEntry[str]"]:
    """What lies in a folder, without what is hidden."""
    try:
        with os.scandir(os.fspath(folder)) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        cause = f"this folder cannot be read ({error.strerror})"
        problems.append(Problem("unreadable-folder", str(folder), cause, "check its permissions"))
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder that may not be read
        return False


def _folders_alone(folder: Path) -> set[str]:
    """Names of a folder's folders, or nothing if it holds pictures too."""
    found = [(entry.name, _is_folder(entry)) for entry in _scan(folder, [])]
    if any(is_image_name(name) for name, is_folder in found if not is_folder):
        return set()
    return {name for name, is_folder in found if is_folder}

"""Lists folders of pictures and collects their problems; no file is opened or written.

Training stops at the first problem (`refuse`); the doctor reports all of them.
"""

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kansformer.data.images import (
    UNREAD_EXTENSIONS,
    extension,
    is_image_name,
    unread_remedy,
)
from kansformer.errors import UserError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Files and folders, in lower case, that operating systems, network drives and tools leave among
# pictures. Some hold thumbnails. Names that begin with a dot are skipped anyway.
SYSTEM_NAMES = frozenset({
    "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology
    "@__thumb", "@recycle", "@recently-snapshot",  # QNAP
    "~snapshot", "lost+found", "_gsdata_",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",  # Windows
    "$recycle.bin", "recycler", "system volume information", "found.000",
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "__pycache__",
})  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Why a folder cannot be trained on; `kind` is a fixed keyword for programs."""

    kind: str
    path: str
    cause: str
    remedy: str


@dataclass
class Split:
    """A folder of class folders: sorted picture paths per class, ignored paths, and problems."""

    folder: Path
    classes: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Listing:
    """A data folder's splits, with keys as in `SPLIT_FOLDERS`; a flat folder is one "train" split.

    Attributes:
        is_flat: whether the class folders lie in the data folder itself.
    """

    name: str
    splits: dict[str, Split] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    is_flat: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The sorted classes of the training split, then those that only other splits have."""
        train, *others = (self.splits.get(part, Split(Path())).classes for part in SPLIT_FOLDERS)
        return (*train, *sorted({name for classes in others for name in classes} - set(train)))


def refuse(problems: Sequence[Problem]) -> None:
    """Raises a UserError for the first problem, if there is one."""
    for problem in problems:
        raise UserError(f"{problem.path}: {problem.cause}; {problem.remedy}")


def list_folder(folder: Path) -> Listing:
    """Lists a data folder: class folders, or train/ and optionally val/ and test/ with them."""
    # a folder's name need not be valid Unicode, but names in result files must be
    listing = Listing(os.fsencode(folder.resolve().name).decode(errors="replace"))
    entries = _scan(folder, listing.problems, listing.ignored)
    below = sorted(Path(entry) for entry in entries if _is_folder(entry))
    matches = {
        part: next((p for p in below if p.name.lower() in names and _subfolders(p)), None)
        for part, names in SPLIT_FOLDERS.items()
    }
    folders = {part: path for part, path in matches.items() if path is not None}
    if not folders:
        folders = {"train": folder}
        listing.is_flat = True
        listing.ignored.clear()  # `list_split` collects these paths again
    elif "train" not in folders:
        cause = f"has {next(iter(folders.values())).name}/ but no train/"
        listing.problems.append(Problem("no-train", str(folder), cause, "add the folder"))
    if not listing.is_flat:
        listing.ignored += [str(path) for path in below if path not in folders.values()]

    known: Collection[str] | None = None
    for part, path in folders.items():
        split = list_split(path, known)
        if part == "train":
            known = split.classes.keys()
            if len(known) == 1:
                split.problems.insert(0, _one_class(path, next(iter(known))))
        listing.splits[part] = split
        listing.ignored += split.ignored
        listing.problems += split.problems
    return listing


def _one_class(folder: Path, name: str) -> Problem:
    """The problem of a folder with one class folder, which may be the parent of the data folder."""
    cause, remedy = f"only one class folder ({name})", "add another, a classifier needs two"
    inside = folder / name
    if len(_subfolders(inside)) > 1:
        cause += ", which itself holds folders"
        remedy = f"if those are the classes, give --data-path {shlex.quote(str(inside))}"
    return Problem("one-class", str(folder), cause, remedy)


def list_split(folder: Path, known: Collection[str] | None = None) -> Split:
    """Lists a folder of class folders, in a fixed order.

    Args:
        known: allowed class names; None allows any.
    """
    split = Split(folder)
    entries = _scan(folder, split.problems, split.ignored)
    names = sorted(entry.name for entry in entries if _is_folder(entry))
    files = sorted(entry.path for entry in entries if not _is_folder(entry))
    loose = [path for path in files if is_image_name(os.path.basename(path))]
    unread = [path for path in files if has_unread_name(path)]
    split.ignored += sorted({*loose, *unread, *filter(is_dead_link, files)})
    if not names and not split.problems:
        cause = "it holds pictures but no folders" if loose else "it holds no class folders"
        remedy = (
            "sort the pictures into one folder per class"
            if loose
            else "add one folder of pictures per class"
        )
        split.problems.append(Problem("no-classes", str(folder), cause, remedy))
    inside = _subfolders(folder / names[0]) if len(names) > 1 else set()
    if inside and all(_subfolders(folder / name) == inside for name in names[1:]):
        cause = (
            f"{names[0]} and {names[1]} hold the same folders, so they look like splits rather"
            " than classes"
        )
        remedy = "rename them to train, val and test, or give one of them as --data-path"
        split.problems.append(Problem("looks-like-splits", str(folder), cause, remedy))
    for name in names:
        path = str(folder / name)
        if name.encode(errors="replace").decode() != name:
            cause = "the class name is not valid UTF-8"
            split.problems.append(Problem("bad-name", path, cause, "rename the folder"))
        if known is not None and name not in known:
            cause = "a class without training pictures"
            remedy = "rename the folder, or add the class to the training pictures"
            split.problems.append(Problem("unknown-class", path, cause, remedy))
        pictures, ignored, problems = walk(path)
        split.classes[name] = pictures
        split.ignored += ignored
        split.problems += problems
        if not pictures and not problems:
            cause, remedy = "no pictures in this class folder", "add some or remove the folder"
            if unread := [other for other in ignored if has_unread_name(other)]:
                cause += f" in a supported format (it has {os.path.basename(unread[0])})"
                remedy = unread_remedy(unread)
            split.problems.append(Problem("empty-class", path, cause, remedy))
    return split


def walk(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], list[Problem]]:
    """Searches a folder recursively.

    Hidden files and folders are skipped. Folders that are links, and entries with SYSTEM_NAMES,
    are not entered and count as other paths.

    Returns:
        Sorted paths of files with a picture's extension, sorted other paths, and problems.
    """
    pictures: list[str] = []
    others: list[str] = []
    problems: list[Problem] = []
    pending: list[str | os.PathLike[str]] = [folder]
    while pending:
        for entry in _scan(pending.pop(), problems, others):
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif is_image_name(entry.name) and not _is_folder(entry):
                pictures.append(entry.path)
            else:
                others.append(entry.path)
    return sorted(pictures), sorted(others), problems


def walk_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted paths of all files below a folder that `walk` takes for pictures."""
    return walk(folder)[0]


def is_dead_link(path: str) -> bool:
    """Whether a path is a broken link."""
    return os.path.islink(path) and not os.path.exists(path)


def is_system_name(path: str) -> bool:
    """Whether a path's last component is one of the SYSTEM_NAMES."""
    return os.path.basename(path).lower() in SYSTEM_NAMES


def has_unread_name(path: str) -> bool:
    """Whether a path has the extension of an unsupported picture format and is not hidden."""
    name = os.path.basename(path)
    return not name.startswith(".") and extension(name) in UNREAD_EXTENSIONS


def _scan(
    folder: str | os.PathLike[str], problems: list[Problem], ignored: list[str]
) -> list["os.DirEntry[str]"]:
    """A folder's entries without hidden ones; entries with SYSTEM_NAMES are added to `ignored`."""
    visible = []
    try:
        with os.scandir(os.fspath(folder)) as entries:
            for entry in entries:
                if is_system_name(entry.name):
                    ignored.append(entry.path)
                elif not entry.name.startswith("."):
                    visible.append(entry)
    except OSError as error:
        cause = f"this folder cannot be read ({error.strerror})"
        problems.append(Problem("unreadable-folder", str(folder), cause, "check its permissions"))
    return visible


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether the entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or a link into a folder without read permission
        return False


def _subfolders(folder: Path) -> set[str]:
    """Names of a folder's subfolders; empty if the folder also holds pictures."""
    entries = [(entry.name, _is_folder(entry)) for entry in _scan(folder, [], [])]
    if any(is_image_name(name) for name, is_folder in entries if not is_folder):
        return set()
    return {name for name, is_folder in entries if is_folder}

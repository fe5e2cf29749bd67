"""A data set with every fault that the doctor reports, and the files that have each fault."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from kansformer.data.images import MAX_BYTES
from tests.conftest import write_picture
from tests.kansformer.data.test_images import huge_png


def pixels(seed: int, size: int = 12) -> np.ndarray:
    """Random pixels, different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def make_sick(folder: Path) -> dict[str, set[str]]:
    """Writes the folder.

    Classes: fox and größe ж are in order, empty has no picture, lone has one, many is the largest,
    new is in val only, and Fox differs from fox by case.

    Returns:
        For each kind of finding the files, relative to the folder, or the classes concerned.
    """
    seed = iter(range(10_000))
    train = folder / "train"

    def save(name: str, image: Image.Image | None = None, **options: object) -> str:
        path = train / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or Image.fromarray(pixels(next(seed)))).save(path, **options)
        return f"train/{name}"

    def write(name: str, data: bytes) -> str:
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_bytes(data)
        return f"train/{name}"

    for i in range(3):
        save(f"größe ж/bild {i}.png")
        save(f"fox/plain {i}.bmp")
        save(f"Fox/plain {i}.tif")
    for i in range(12):
        save(f"many/{i:02}.png")
    save("lone/only.jpg")
    (train / "empty").mkdir()
    (train / "empty" / "notes.txt").write_text("none yet")
    kinds = {"empty-class": {"train/empty"}, "tiny-class": {"lone"}, "unknown-class": {"val/new"}}

    save("many/whole.jpg", Image.fromarray(pixels(next(seed), 64)))
    whole = (train / "many" / "whole.jpg").read_bytes()
    kinds["damaged"] = {write("many/cut.jpg", whole[:-700]), write("many/cut.png", huge_png(8, 8))}
    kinds["not-a-picture"] = {write("fox/text.png", b"no picture"), write("fox/void.jpg", b"")}
    kinds["too-many-pixels"] = {write("fox/bomb.png", huge_png(20_000, 20_000))}
    kinds["too-many-bytes"] = {write("fox/heavy.bmp", b"BM")}
    os.truncate(train / "fox" / "heavy.bmp", MAX_BYTES + 1)  # a sparse file
    os.symlink("nowhere.png", train / "fox" / "gone.png")
    os.symlink("nowhere", train / "fox" / "gone")
    kinds["link-to-nowhere"] = {"train/fox/gone.png"}
    kinds["dead-link"] = {"train/fox/gone"}
    os.mkfifo(train / "fox" / "pipe.png")
    kinds["no-file"] = {"train/fox/pipe.png"}

    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    kinds["deep"] = {save("many/deep.png", Image.fromarray(deep))}
    cmyk = Image.fromarray(pixels(next(seed))).convert("CMYK")
    kinds["cmyk"] = {save("many/cmyk.jpg", cmyk)}
    palette = Image.fromarray(pixels(next(seed))).quantize(8)
    kinds["transparent-palette"] = {save("many/palette.png", palette, transparency=1)}
    clear = Image.fromarray(pixels(next(seed))).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    kinds["transparent"] = {save("many/clear.png", clear)}
    kinds["turned"] = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = save(f"many/turned {orientation}.png", exif=exif)
        kinds["turned"] |= {name} if orientation > 1 else set()

    (train / "many" / "Thumbs.db").touch()
    (train / "many" / "PLAIN.TXT").touch()
    (folder / "raw").mkdir()
    kinds["ignored"] = {"train/empty/notes.txt", "train/many/PLAIN.TXT", "raw"}
    kinds["system-files"] = {"train/many/Thumbs.db", "train/many/@eaDir", "__MACOSX"}
    write_picture(train / "many" / "@eaDir" / "00.png" / "SYNOPHOTO_THUMB_S.png", (0, 0, 0), 0)
    write_picture(folder / "__MACOSX" / "train" / "00.png", (0, 0, 0), 0)
    (train / "fox" / "phone.HEIC").write_bytes(b"ftypheic")
    (train / "loose.psd").touch()
    kinds["unread-format"] = {"train/fox/phone.HEIC", "train/loose.psd"}
    save("many/end.jpg", Image.fromarray(pixels(next(seed), 64)))
    kinds["mended"] = {write("many/end.jpg", (train / "many" / "end.jpg").read_bytes()[:-2])}
    kinds["levels"] = set()
    hidden = train / "many" / ".checkpoints" / "00.png"
    write_picture(hidden, (0, 0, 0), 0)

    same = Image.fromarray(pixels(next(seed)))
    other = Image.fromarray(pixels(next(seed)))
    third = Image.fromarray(pixels(next(seed)))
    within = {save("many/same a.png", same), save("many/same b.bmp", same)}
    conflict = {save("many/other.png", other), save("größe ж/other.png", other)}
    across = {save("many/third.png", third), save("../val/many/copy of third.tif", third)}
    kinds["duplicates"] = within
    kinds["duplicates-with-conflicting-labels"] = conflict
    kinds["duplicates-across-splits"] = {name.replace("train/../", "") for name in across}
    save("../val/new/first.png")
    for i, name in enumerate(("fox", "Fox", "größe ж")):
        save(f"../val/{name}/{i}.png")
    kinds["class-not-in-split"] = {"lone"}
    kinds["alike-classes"] = {"fox", "Fox"}
    kinds["alike-files"] = {save("many/up.png"), save("many/UP.png")}
    kinds["unbalanced"] = {"many", "lone"}
    return kinds

"""Scenes of real handwritten digits, for three tasks, without a download.

scikit-learn ships 1797 handwritten digits of 8x8 pixels (the UCI "Optical
Recognition of Handwritten Digits" test set). They are enlarged, tilted,
inked in a random colour and laid on a textured background, and written in
the layouts that the stock dataset classes of OpenMMLab read::

    root/
      parameters.json                           what the folder was made with
      det/images/{train,val}_*.png              the scenes ...
      det/annotations/instances_{train,val}.json   ... with COCO boxes
      seg/img_dir/{train,val}/*.png             the same scenes ...
      seg/ann_dir/{train,val}/*.png             ... 0 background, 1 + digit
      cls/{train,val}/{0..9}/*.png              one digit an image
"""
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

# Raise the version whenever the files change for the same parameters.
_MADE_BY = dict(generator='mmpsw.datasets.digits', version=1)
_PARAMETERS = 'parameters.json'
_LEAST = dict(train=1, val=1, size=64, seed=0)
_SCENE_DIGITS = (4, 11)  # digits tried per scene, [low, high)
_TILE = (16, 45)  # a digit's height in a scene in pixels, [low, high)
_SINGLE_TILE = (22, 29)  # ... and in a classification image
_SINGLE_SIZE = 32  # pixels, the side of a classification image
_TILT = 12  # degrees to either side
_GAP = 2  # pixels between the boxes of two digits
_INKED = 102  # of 255: a pixel with at least this much ink is the digit's


class Digits(NamedTuple):
    """Handwritten samples of one split.

    Attributes:
        images: (N, 8, 8) uint8, ink from 0 to 255.
        labels: (N, ) int, the digit.
        samples: (N, ) int, the index in scikit-learn's data set.
    """

    images: np.ndarray
    labels: np.ndarray
    samples: np.ndarray


def generate(root: str | os.PathLike,
             train: int = 640,
             val: int = 128,
             size: int = 128,
             seed: int = 0,
             progress: bool = True) -> Path:
    """Write the data set, unless it is there already.

    Equal parameters give equal bytes. The files appear all at once: they
    are written beside ``root`` and renamed at the end.

    Args:
        root: The folder to make, usually ``data/digits``.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Side of a scene in pixels, at least 64.
        seed: Of scenes, not of the split, which is always the same.
        progress: Show a progress bar.

    Returns:
        Path: ``root``.

    Raises:
        ValueError: For a parameter out of range, or when ``root`` holds
            something that this function has not written.
    """
    root = Path(root)
    parameters = dict(train=train, val=val, size=size, seed=seed)
    for name, least in _LEAST.items():
        if parameters[name] < least:
            raise ValueError(
                f'{name}={parameters[name]} is out of range: the digits data '
                f'set needs {name} >= {least}.')
    found = _read_parameters(root)
    if found == {**_MADE_BY, **parameters}:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.with_name(f'.{root.name}.draft-{os.getpid()}')
    try:
        for number, split in enumerate(('train', 'val')):
            digits = load_split(split)
            scenes = track(
                scenes_of(digits, parameters[split], size, (seed, number, 0)),
                f'digits: {split} scenes', parameters[split],
                disable=not progress)
            _write_scenes(draft, split, scenes)
            _write_singles(draft / 'cls' / split, digits, (seed, number, 1))
        _write_json(draft / _PARAMETERS, {**_MADE_BY, **parameters})
        if found is not None:
            shutil.rmtree(root)
        draft.rename(root)
    except OSError:  # another process may have been faster
        if _read_parameters(root) != parameters:
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def load_split(split: str) -> Digits:
    """The handwritten samples of ``'train'`` or ``'val'``.

    The last fifth of each class is for validation. The file is ordered by
    writer, so a cut keeps most writers on one side, which a shuffle would
    not.
    """
    from sklearn.datasets import load_digits  # which takes a second
    data = load_digits()
    chosen = []
    for label in range(10):
        members = np.flatnonzero(data.target == label)
        cut = len(members) * 4 // 5
        chosen.append(members[:cut] if split == 'train' else members[cut:])
    samples = np.sort(np.concatenate(chosen))
    images = np.rint(data.images[samples] * (255 / 16)).astype(np.uint8)
    return Digits(images, data.target[samples], samples)


def scenes_of(digits: Digits, count: int, size: int,
              key: tuple[int, ...]) -> Iterator[tuple]:
    """Scenes, each from a generator of its own: none depends on the count.

    Yields:
        (size, size, 3) uint8, RGB; (size, size) uint8, 0 for the background
        and 1 + digit; and COCO annotations without ids, with the handwritten
        sample's index as ``sample``.
    """
    for index in range(count):
        yield _compose(digits, size, np.random.default_rng((*key, index)))


def _compose(digits: Digits, size: int, rng: np.random.Generator) -> tuple:
    """Lay a few digits on a texture, with no two boxes touching."""
    image = _texture(size, rng)
    seg_map = np.zeros((size, size), np.uint8)
    occupied = np.zeros((size, size), bool)
    objects = []
    for _ in range(rng.integers(*_SCENE_DIGITS)):
        choice = rng.integers(len(digits.labels))
        ink = _draw_ink(digits.images[choice], _TILE, rng)
        y, x = _place(ink, size, rng)
        height, width = ink.shape
        around = np.s_[max(y - _GAP, 0):y + height + _GAP,
                       max(x - _GAP, 0):x + width + _GAP]
        if occupied[around].any():
            continue
        window = np.s_[y:y + height, x:x + width]
        occupied[window] = True
        _apply_ink(image[window], ink, rng)
        label, mask = int(digits.labels[choice]), ink >= _INKED
        seg_map[window][mask] = 1 + label
        objects.append(dict(
            category_id=label, bbox=[x, y, width, height],
            area=int(mask.sum()), iscrowd=0,
            sample=int(digits.samples[choice])))
    return image, seg_map, objects


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8: value noise of three octaves on a colour.

    Pillow resizes uint8 in fixed-point arithmetic, so that the bytes do not
    depend on the processor.
    """
    texture = rng.integers(70, 186, 3) * np.ones((size, size, 1), np.int64)
    for cells, amplitude in ((3, 40), (12, 24), (size // 2, 16)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        noise = Image.fromarray(noise).resize((size, size), Image.BICUBIC)
        texture += (np.asarray(noise, np.int64) - 128) * amplitude // 128
    return texture.clip(0, 255).astype(np.uint8)


def _draw_ink(image: np.ndarray, heights: tuple[int, int],
              rng: np.random.Generator) -> np.ndarray:
    """Enlarge and tilt an 8x8 digit: (h, w) uint8, cut to what is inked."""
    height = int(rng.integers(*heights))
    width = height * int(rng.integers(75, 111)) // 100
    # The border leaves room for the tilt and for the cubic's overshoot.
    tile = Image.fromarray(np.pad(image, 2))
    tile = tile.resize((width * 12 // 8, height * 12 // 8), Image.BICUBIC)
    tile = tile.rotate(int(rng.integers(-_TILT, _TILT + 1)), Image.BICUBIC)
    ink = np.asarray(tile)
    rows = np.flatnonzero((ink >= _INKED).any(1))
    columns = np.flatnonzero((ink >= _INKED).any(0))
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _place(ink: np.ndarray, size: int,
           rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the ink's upper left corner in an image."""
    height, width = ink.shape
    return (int(rng.integers(size - height + 1)),
            int(rng.integers(size - width + 1)))


def _apply_ink(image: np.ndarray, ink: np.ndarray,
               rng: np.random.Generator) -> None:
    """Blend a random ink into (h, w, 3), lighter or darker than that is."""
    dark = image.mean() >= 128
    colour = rng.integers(0, 71, 3) if dark else rng.integers(185, 256, 3)
    alpha = ink[..., None].astype(np.int64)
    image[:] = (image * (255 - alpha) + colour * alpha) // 255


def _read_parameters(root: Path) -> dict[str, Any] | None:
    """What ``root`` was made with; None where there is nothing yet."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        found = json.loads((root / _PARAMETERS).read_text())
        ours = found['generator'] == _MADE_BY['generator']
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(
            f'{root} is not overwritten, because it holds something else '
            f'than a generated digits data set (no {_PARAMETERS} of it). '
            'Choose another folder or move that one away.')
    return found


def _write_scenes(root: Path, split: str, scenes: Iterator[tuple]) -> None:
    images, annotations = [], []
    for index, (image, seg_map, objects) in enumerate(scenes):
        name = f'{index:05d}.png'
        height, width = seg_map.shape
        images.append(dict(id=index, file_name=f'{split}_{name}', width=width,
                           height=height))
        annotations += [
            dict(id=len(annotations) + i, image_id=index, **obj)
            for i, obj in enumerate(objects, start=1)
        ]
        _write_png(root / 'det/images' / f'{split}_{name}', image)
        _write_png(root / 'seg/img_dir' / split / name, image)
        _write_png(root / 'seg/ann_dir' / split / name, seg_map)
    categories = [dict(id=i, name=str(i)) for i in range(10)]
    _write_json(
        root / 'det/annotations' / f'instances_{split}.json',
        dict(images=images, annotations=annotations, categories=categories))


def _write_singles(root: Path, digits: Digits, key: tuple[int, ...]) -> None:
    """One image for each handwritten sample, named by the sample's index."""
    for index, (digit, label, sample) in enumerate(zip(*digits)):
        rng = np.random.default_rng((*key, index))
        image = _texture(_SINGLE_SIZE, rng)
        ink = _draw_ink(digit, _SINGLE_TILE, rng)
        y, x = _place(ink, _SINGLE_SIZE, rng)
        _apply_ink(image[y:y + ink.shape[0], x:x + ink.shape[1]], ink, rng)
        _write_png(root / str(label) / f'{sample:04d}.png', image)


def _write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=1)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + '\n')

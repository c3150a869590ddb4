"""Preprocessing against plain Pillow and NumPy, against transformers' processors, and in what it refuses."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeslim.datasets.preprocessing import Preprocessing, PreprocessingOptions, read_processor, resolve_preprocessing
from edgeslim.errors import BadInputError

RNG = np.random.default_rng(0)
WIDE = Image.fromarray(RNG.integers(0, 256, (37, 61, 3), np.uint8))
TALL = Image.fromarray(RNG.integers(0, 256, (64, 30), np.uint8))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def by_hand(image: Image.Image, height: int, width: int, mode: str, resample: Any) -> np.ndarray:
    """Resized and cut, float64 [height, width, channels]."""
    if mode == "crop":
        factor = max(height, width) / min(image.size)
        sides = [int(round(side * factor, 9)) for side in image.size]
        image = image.resize((sides[0], sides[1]), resample)
        pixels = np.asarray(image)
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
    else:
        pixels = np.asarray(image.resize((width, height), resample))
    return pixels.reshape(height, width, -1).astype(np.float64)


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("picture", [WIDE, TALL])
def test_equals_numpy(mode: Any, resample: Any, layout: Any, picture: Image.Image) -> None:
    made = Preprocessing(size=(24, 20), mode=mode, resample=resample, mean=MEAN, std=STD, layout=layout)
    expected = by_hand(picture.convert("RGB"), 24, 20, mode, getattr(Image.Resampling, resample.upper()))
    expected = (expected / 255 - MEAN) / STD
    if layout == "nchw":
        expected = np.moveaxis(expected, -1, 0)
    found = made.normalize(made.prepare(picture)[None])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


def test_gray_pixels_stay_as_they_are() -> None:
    made = Preprocessing(size=(64, 30), mode="none", channels="gray", scale=1.0, dtype="uint8", layout="nhwc")
    found = made.normalize(made.prepare(TALL)[None])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :, :, 0], np.asarray(TALL))
    with pytest.raises(ValueError, match="61 x 37 pixels, expected 30 x 64"):
        made.prepare(WIDE)


PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 32, "width": 24}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3},
    "CLIPImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}},
    "MobileNetV2ImageProcessor": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("picture", [WIDE, TALL.convert("RGB")])
def test_equals_transformers(name: str, picture: Image.Image, tmp_path: Path) -> None:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = getattr(transformers, name)(**PROCESSORS[name])
        processor.save_pretrained(tmp_path)
        expected = processor(picture, return_tensors="np")["pixel_values"]
    made = resolve_preprocessing(PreprocessingOptions(), shape=(None, 3, None, None), folder=tmp_path)
    np.testing.assert_allclose(made.normalize(made.prepare(picture)[None]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"size": 224}, {"mode": "crop", "size": (224, 224), "shortest_edge": 224, "scale": 1 / 255}),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            {"mode": "stretch", "size": (384, 384), "scale": 1 / 255},
        ),
        ({"do_resize": False, "do_rescale": False}, {"mode": "none", "scale": 1.0}),
        ({"do_normalize": False, "image_mean": [0.5], "resample": 0}, {"scale": 1 / 255, "resample": "nearest"}),
    ],
)
def test_read_processor(tmp_path: Path, table: dict[str, Any], expected: dict[str, Any]) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(table))
    assert read_processor(path) == expected


@pytest.mark.parametrize(
    ("table", "got"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON list"),
        ("[" * 100_000, "not valid JSON"),
        (" " * ((1 << 20) + 1), "1,048,577 bytes"),
        ('{"size": {"height": 0, "width": 3}}', "size {'height': 0, 'width': 3}"),
        ('{"size": {"shortest_edge": 1e9}}', "size {'shortest_edge': 1000000000.0}"),
        ('{"size": "big"}', "size 'big'"),
        ('{"size": {"longest_edge": 3}}', "size {'longest_edge': 3}"),
        ('{"rescale_factor": "x"}', "rescale_factor: 'x'\n  expected: a number"),
        ('{"image_mean": [0.5, "x"]}', "image_mean: 'x'"),
        ('{"do_pad": true}', "do_pad"),
        ('{"size": {"height": 9, "width": 9}, "do_center_crop": true, "crop_size": 7}', "a stretched size and a crop"),
    ],
)
def test_read_processor_refuses(tmp_path: Path, table: str, got: str) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(table)
    with pytest.raises(BadInputError, match=re.escape(got)):
        read_processor(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((None, 3, 32, 24), "float32", Preprocessing(size=(32, 24))),
        ((1, 1, 28, 28), "float32", Preprocessing(size=(28, 28), channels="gray")),
        ((1, 96, 64, 3), "uint8", Preprocessing(size=(96, 64), layout="nhwc", dtype="uint8", scale=1.0)),
        ((None, 3, None, None), "float32", Preprocessing(size=(48, 48))),
    ],
)
def test_what_the_input_says(shape: tuple[int | None, ...], dtype: str, expected: Preprocessing) -> None:
    assert (
        resolve_preprocessing(PreprocessingOptions(), shape=shape, dtype=dtype, config={"image_size": 48}) == expected
    )


def test_the_project_goes_first(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 64, "image_mean": [0.5] * 3}))
    options = PreprocessingOptions(size=(32, 32), mode="stretch", std=(0.25,))
    made = resolve_preprocessing(options, shape=(1, 3, 32, 32), folder=tmp_path)
    assert made == Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("options", "shape", "got"),
    [
        ({}, (1, 16), "an input of shape [1, 16]"),
        ({}, (1, 4, 32, 32), "expected: a picture of 1 or 3 channels"),
        ({}, (None, 3, None, None), "no size"),
        ({"size": (16, 16)}, (1, 3, 32, 32), "size [16, 16], rgb, nchw makes [3, 16, 16]\n  expected: the model's"),
        ({"channels": "gray"}, (1, 3, 32, 32), "makes [1, 32, 32]"),
        ({"layout": "nhwc"}, (1, 3, 32, 32), "makes [32, 32, 3]"),
        ({"size": (16,)}, (1, 3, None, None), "size: [16]\n  expected: [height, width]"),
        ({"size": (16, 99_999)}, (1, 3, None, None), "each from 1 to 8192"),
        ({"mean": (0.5, 0.5)}, (1, 3, 8, 8), "mean: [0.5, 0.5]\n  expected: a finite number for each of 3 channels"),
        ({"mean": (float("nan"),)}, (1, 3, 8, 8), "mean: [nan]"),
        ({"std": (0.0,)}, (1, 3, 8, 8), "expected: numbers above 0"),
        ({"mode": "crop", "shortest_edge": 4}, (1, 3, 8, 8), "shortest_edge: 4"),
        ({"shortest_edge": 10}, (1, 3, 8, 8), 'shortest_edge: 10 with mode "stretch"'),
        ({"dtype": "uint8"}, (1, 3, 8, 8), "dtype: uint8 with scale"),
    ],
)
def test_refuses(options: dict[str, Any], shape: tuple[int | None, ...], got: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(got)):
        resolve_preprocessing(PreprocessingOptions(**options), shape=shape)


def test_manifest() -> None:
    made = Preprocessing(size=(8, 6), mode="crop", mean=(0.5,))
    assert json.loads(json.dumps(made.manifest())) == {
        "size": [8, 6],
        "mode": "crop",
        "shortest_edge": 8,
        "resample": "bilinear",
        "channels": "rgb",
        "scale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [1.0, 1.0, 1.0],
        "layout": "nchw",
        "dtype": "float32",
    }
    assert "shortest_edge" not in Preprocessing(size=(8, 6)).manifest()

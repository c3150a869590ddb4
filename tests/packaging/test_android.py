from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging.android import AndroidSettings, MavenCoordinates, write_aar, write_maven
from edgeslim.packaging.bundle import Bundle
from edgeslim.runtime import LOADER_JAR

SETTINGS = AndroidSettings(min_sdk=24)
COORDINATES = MavenCoordinates(group="com.example.models", artifact="tiny", version="1.0.2", onnxruntime="1.29.0")
ANDROID = "{http://schemas.android.com/apk/res/android}"
POM = "{http://maven.apache.org/POM/4.0.0}"


def make_bundle(folder: Path, *extras: str) -> Bundle:
    folder.mkdir()
    model, packed, manifest = folder / "m", folder / "w", folder / "j"
    model.write_bytes(b"model " * 100)
    packed.write_bytes(b"weights " * 1000)
    files = {
        "model.onnx": {"bytes": 600, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        "weights.bin": {"bytes": 1, "sha256": "0" * 64},
    }
    manifest.write_text(json.dumps({"schema": 1, "files": files}), encoding="utf-8")
    extra = folder / "e"
    extra.write_text("extra", encoding="utf-8")
    return Bundle(
        name="tiny-v2", model=model, packed=packed, manifest=manifest, extras=tuple((name, extra) for name in extras)
    )


def edit_manifest(bundle: Bundle, old: str, new: str) -> None:
    text = bundle.manifest.read_text(encoding="utf-8")
    assert old in text
    bundle.manifest.write_text(text.replace(old, new), encoding="utf-8")


def test_same_bytes_in_another_folder(tmp_path: Path) -> None:
    first = write_aar(make_bundle(tmp_path / "a", "LICENSE"), SETTINGS, tmp_path / "1" / "x.aar")
    bundle = make_bundle(tmp_path / "b", "LICENSE")
    os.utime(bundle.model, (1e9, 1e9))
    bundle.packed.chmod(0o600)
    assert write_aar(bundle, SETTINGS, tmp_path / "2" / "y.aar").read_bytes() == first.read_bytes()


def test_contents(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a", "tokenizer/tokenizer.json", "LICENSE")
    with zipfile.ZipFile(write_aar(bundle, SETTINGS, tmp_path / "x.aar")) as aar:
        assert aar.namelist() == [
            "AndroidManifest.xml",
            "META-INF/com/android/build/gradle/aar-metadata.properties",
            "R.txt",
            "assets/edgeslim/tiny-v2/LICENSE",
            "assets/edgeslim/tiny-v2/manifest.json",
            "assets/edgeslim/tiny-v2/model.onnx",
            "assets/edgeslim/tiny-v2/tokenizer/tokenizer.json",
            "assets/edgeslim/tiny-v2/weights.esz",
            "classes.jar",
            "proguard.txt",
        ]
        weights = aar.getinfo("assets/edgeslim/tiny-v2/weights.esz")
        assert weights.compress_type == zipfile.ZIP_STORED
        assert aar.read(weights) == bundle.packed.read_bytes()
        assert aar.read("assets/edgeslim/tiny-v2/model.onnx") == bundle.model.read_bytes()
        assert aar.read("assets/edgeslim/tiny-v2/manifest.json") == bundle.manifest.read_bytes()
        assert aar.read("classes.jar") == LOADER_JAR.read_bytes()
        assert b"-keep class ai.onnxruntime.** { *; }" in aar.read("proguard.txt")
        assert b"aarFormatVersion=1.0\n" in aar.read("META-INF/com/android/build/gradle/aar-metadata.properties")
        manifest = ET.fromstring(aar.read("AndroidManifest.xml"))
        classes = io.BytesIO(aar.read("classes.jar"))
    assert manifest.get("package") == "io.edgeslim.model.m_tiny_v2"
    sdk = manifest.find("uses-sdk")
    assert sdk is not None
    assert sdk.get(f"{ANDROID}minSdkVersion") == "24"
    with zipfile.ZipFile(classes) as jar:
        for name in jar.namelist():
            assert name.startswith("io/edgeslim/")
            assert struct.unpack(">IHH", jar.read(name)[:8]) == (0xCAFEBABE, 0, 52)


def test_second_model_of_an_app_comes_without_the_loader(tmp_path: Path) -> None:
    settings = AndroidSettings(min_sdk=24, namespace="com.example.second", include_loader=False)
    with zipfile.ZipFile(write_aar(make_bundle(tmp_path / "a"), settings, tmp_path / "x.aar")) as aar:
        with zipfile.ZipFile(io.BytesIO(aar.read("classes.jar"))) as jar:
            assert jar.namelist() == ["META-INF/MANIFEST.MF"]
        assert b'package="com.example.second"' in aar.read("AndroidManifest.xml")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../../../evil", "a\\..\\evil", "C:\\evil", "", "a//b"])
def test_extras_that_leave_the_assets(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError):
        write_aar(make_bundle(tmp_path / "a", name), SETTINGS, tmp_path / "out" / "x.aar")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".hidden", "a/.git", "_cache/x", "words.txt~", "words.gz"])
def test_extras_that_android_would_drop(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="leaves out or renames"):
        write_aar(make_bundle(tmp_path / "a", name), SETTINGS, tmp_path / "x.aar")


def test_extra_in_the_place_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="two entries"):
        write_aar(make_bundle(tmp_path / "a", "model.onnx"), SETTINGS, tmp_path / "x.aar")


@pytest.mark.parametrize("name", ["", "..", ".a", "a/b", "a b", "-a", "ä", "a" * 65, "a\n"])
def test_package_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="package name"):
        write_aar(replace(make_bundle(tmp_path / "a"), name=name), SETTINGS, tmp_path / "x.aar")


@pytest.mark.parametrize(
    "settings",
    [
        AndroidSettings(min_sdk=20),
        AndroidSettings(min_sdk=24, namespace="model"),
        AndroidSettings(min_sdk=24, namespace='a.b"'),
        AndroidSettings(min_sdk=24, namespace="a.1b"),
    ],
)
def test_settings_that_android_refuses(tmp_path: Path, settings: AndroidSettings) -> None:
    with pytest.raises(BadInputError, match="android"):
        write_aar(make_bundle(tmp_path / "a"), settings, tmp_path / "x.aar")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema": 1', '"schema": 2'),
        ('"files"', '"file"'),
        ('"weights.bin"', '"weights"'),
        ('"bytes": 1,', '"bytes": "1",'),
        ('"0000', '"x000'),
        ("{", "["),
        ("{", " " * (1 << 20) + "{"),
    ],
)
def test_manifests_that_the_loader_would_refuse(tmp_path: Path, old: str, new: str) -> None:
    bundle = make_bundle(tmp_path / "a")
    edit_manifest(bundle, old, new)
    with pytest.raises(BadInputError, match=str(bundle.manifest)):
        write_aar(bundle, SETTINGS, tmp_path / "x.aar")


def test_manifest_of_another_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    bundle.model.write_bytes(b"another")
    with pytest.raises(BadInputError, match="SHA-256 of model"):
        write_aar(bundle, SETTINGS, tmp_path / "x.aar")


def test_maven_layout(tmp_path: Path) -> None:
    aar = write_aar(make_bundle(tmp_path / "a"), SETTINGS, tmp_path / "x.aar")
    for _ in range(2):  # a second build replaces the first
        folder = write_maven(aar, COORDINATES, tmp_path / "maven")
    assert folder == tmp_path / "maven" / "com" / "example" / "models" / "tiny" / "1.0.2"
    kinds = ("", ".md5", ".sha1", ".sha256")
    expected = {f"tiny-1.0.2.{file}{kind}" for file in ("aar", "pom") for kind in kinds}
    assert {path.name for path in folder.iterdir()} == expected
    copy = folder / "tiny-1.0.2.aar"
    assert copy.read_bytes() == aar.read_bytes()
    assert copy.samefile(aar)
    for file in (copy, folder / "tiny-1.0.2.pom"):
        for algorithm in ("md5", "sha1", "sha256"):
            digest = hashlib.new(algorithm, file.read_bytes()).hexdigest()
            assert file.with_name(f"{file.name}.{algorithm}").read_text(encoding="ascii") == digest


def test_pom(tmp_path: Path) -> None:
    aar = write_aar(make_bundle(tmp_path / "a"), SETTINGS, tmp_path / "x.aar")
    pom = ET.fromstring((write_maven(aar, COORDINATES, tmp_path / "maven") / "tiny-1.0.2.pom").read_bytes())
    own = [pom.findtext(f"{POM}{field}") for field in ("groupId", "artifactId", "version", "packaging")]
    assert own == ["com.example.models", "tiny", "1.0.2", "aar"]
    (dependency,) = pom.iter(f"{POM}dependency")
    needs = [dependency.findtext(f"{POM}{field}") for field in ("groupId", "artifactId", "version")]
    assert needs == ["com.microsoft.onnxruntime", "onnxruntime-android", "1.29.0"]


def test_copy_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    aar = write_aar(make_bundle(tmp_path / "a"), SETTINGS, tmp_path / "x.aar")
    copy = write_maven(aar, COORDINATES, tmp_path / "maven") / "tiny-1.0.2.aar"
    assert copy.read_bytes() == aar.read_bytes()
    assert not copy.samefile(aar)


@pytest.mark.parametrize("field", ["group", "artifact", "version", "onnxruntime"])
@pytest.mark.parametrize("value", ["", "..", "a/b", "a..b", "../x", "a b", "<x>", "a\n", "[1,2)"])
def test_coordinates_that_maven_refuses(tmp_path: Path, field: str, value: str) -> None:
    aar = tmp_path / "x.aar"
    aar.write_bytes(b"")
    with pytest.raises(BadInputError, match=f"Maven {field}"):
        write_maven(aar, replace(COORDINATES, **{field: value}), tmp_path / "maven")
    assert not (tmp_path / "maven").exists()

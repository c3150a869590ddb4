"""The Android package: an AAR with the model as assets and the Java loader, and a local Maven repository for it.

::

    AndroidManifest.xml        namespace, minSdk
    classes.jar                the loader (io.edgeslim), prebuilt
    R.txt                      empty: there are no resources
    proguard.txt               rules for the app's shrinker: ONNX Runtime's JNI finds classes by name
    assets/edgeslim/NAME/      model.onnx  weights.esz  manifest.json  tokenizer/…  LICENSE
    META-INF/com/android/build/gradle/aar-metadata.properties

ONNX Runtime itself isn't inside: the ``.pom`` names its AAR as a dependency, so that an app with several models has
it once. For the same reason only one AAR of an app may carry the loader (``AndroidSettings.include_loader``).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from edgeslim.errors import BadInputError
from edgeslim.packaging.archive import Entry, check_name, write_zip
from edgeslim.replacing import replaced_when_whole
from edgeslim.runtime import LOADER_JAR

if TYPE_CHECKING:
    from edgeslim.packaging.bundle import Bundle

__all__ = ["LOADER_SCHEMA", "AndroidSettings", "MavenCoordinates", "write_aar", "write_maven"]

LOADER_SCHEMA = 1
"""The ``schema`` of manifest.json that the Java loader reads."""
_LOADER_MANIFEST_BYTES = 1 << 20
_LOADER_FILES = ("model.onnx", "weights.bin")

_PROGUARD = """\
# ONNX Runtime's native code looks up its Java classes, methods and fields by name.
-keep class ai.onnxruntime.** { *; }
-keep public class io.edgeslim.** { public protected *; }
"""
_AAR_METADATA = """\
aarFormatVersion=1.0
aarMetadataVersion=1.0
minCompileSdk=1
minCompileSdkExtension=0
minAndroidGradlePluginVersion=1.0.0
"""


@dataclass(frozen=True, kw_only=True)
class AndroidSettings:
    """What the AAR says of itself."""

    min_sdk: int
    """The lowest API level; 24 is that of ONNX Runtime's own AAR."""
    namespace: str = ""
    """Package name of the AAR, unlike that of any other library in the app; empty: made of the bundle's name."""
    include_loader: bool = True
    """Whether classes.jar holds the loader. An app with two models takes one AAR with it and one without."""


@dataclass(frozen=True, kw_only=True)
class MavenCoordinates:
    """Under which name Gradle finds the AAR, and the ONNX Runtime that it needs."""

    group: str
    artifact: str
    version: str
    onnxruntime: str
    """Version of com.microsoft.onnxruntime:onnxruntime-android."""


def write_aar(bundle: Bundle, settings: AndroidSettings, out: Path) -> Path:
    """Writes the AAR of ``bundle`` to ``out`` and returns its path.

    The same inputs give the same bytes. ``weights.esz`` is stored as it is, everything else deflated.

    Raises:
        BadInputError: a name that an archive or Android's packager can't take, or a manifest that the loader refuses.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", bundle.name):
        raise BadInputError(
            "package name",
            f"{bundle.name!r}",
            expected="1 to 64 letters, digits, dots, dashes or underscores, a letter or digit in front",
        )
    _check_manifest(bundle)
    assets = [("model.onnx", bundle.model), ("weights.esz", bundle.packed), ("manifest.json", bundle.manifest)]
    for name, path in bundle.extras:
        _check_asset_name(name)
        assets.append((name, path))
    entries = [
        Entry(name="AndroidManifest.xml", data=_android_manifest(bundle.name, settings).encode()),
        Entry(name="R.txt", data=b""),
        Entry(name="proguard.txt", data=_PROGUARD.encode()),
        Entry(name="META-INF/com/android/build/gradle/aar-metadata.properties", data=_AAR_METADATA.encode()),
        Entry(name="classes.jar", data=LOADER_JAR if settings.include_loader else _empty_jar()),
    ]
    entries += [
        Entry(name=f"assets/edgeslim/{bundle.name}/{name}", data=path, stored=name.endswith(".esz"))
        for name, path in assets
    ]
    return write_zip(out, entries)


def _android_manifest(name: str, settings: AndroidSettings) -> str:
    namespace = settings.namespace or "io.edgeslim.model." + re.sub(r"[^a-z0-9]", "_", f"m_{name.lower()}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+", namespace):
        raise BadInputError(
            "android namespace", f"{namespace!r}", expected="a Java package of two parts or more, as com.example.model"
        )
    if settings.min_sdk < 21:
        raise BadInputError(
            "android min_sdk", f"{settings.min_sdk}", expected="21 or more", hint="the loader uses the no-backup folder"
        )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{namespace}">\n'
        f'    <uses-sdk android:minSdkVersion="{settings.min_sdk}" />\n'
        "</manifest>\n"
    )


def _empty_jar() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as jar:
        jar.writestr(zipfile.ZipInfo("META-INF/MANIFEST.MF"), "Manifest-Version: 1.0\r\n\r\n")
    return buffer.getvalue()


def _check_asset_name(name: str) -> None:
    check_name(name)
    *folders, file = name.split("/")
    dropped = any(part.startswith(".") for part in (*folders, file)) or any(part.startswith("_") for part in folders)
    if dropped or file.endswith(("~", ".gz")):
        raise BadInputError(
            "assets",
            f"Android's packager leaves out or renames {name!r}",
            expected="no dot in front, no folder with an underscore in front, no ~ or .gz at the end",
        )


def _check_manifest(bundle: Bundle) -> None:
    """The loader must be able to read the manifest, and the model must be the one that it names."""
    where = str(bundle.manifest)
    raw = bundle.manifest.read_bytes()
    if len(raw) > _LOADER_MANIFEST_BYTES:
        raise BadInputError(where, f"{len(raw)} bytes", expected=f"at most {_LOADER_MANIFEST_BYTES}")
    try:
        root: object = json.loads(raw)
    except ValueError as error:
        raise BadInputError(where, f"no JSON: {error}") from error
    if not isinstance(root, dict) or root.get("schema") != LOADER_SCHEMA:
        raise BadInputError(where, "not a manifest that the Java loader reads", expected=f'"schema": {LOADER_SCHEMA}')
    files = root.get("files")
    for name in _LOADER_FILES:
        entry = files.get(name) if isinstance(files, dict) else None
        if (
            not isinstance(entry, dict)
            or type(entry.get("bytes")) is not int
            or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))
        ):
            raise BadInputError(where, f'no size and hash of "{name}"', expected=f'files["{name}"]: bytes, sha256')
        if name == "model.onnx" and entry["sha256"] != _digest("sha256", bundle.model):
            raise BadInputError(where, f"its SHA-256 of model.onnx isn't that of {bundle.model}")


def write_maven(aar: Path, coordinates: MavenCoordinates, root: Path) -> Path:
    """Lays the AAR into the Maven repository ``root`` (a folder) and returns the artifact's folder there.

    Beside the ``.aar`` (a hard link where that works) lie the ``.pom`` with the dependency on ONNX Runtime and the
    checksum files that Gradle compares.

    Raises:
        BadInputError: coordinates with a character that Maven doesn't take.
    """
    for field in ("group", "artifact", "version", "onnxruntime"):
        value = getattr(coordinates, field)
        if not re.fullmatch(r"[A-Za-z0-9_]+([.+-][A-Za-z0-9_]+)*", value):
            raise BadInputError(f"Maven {field}", f"{value!r}", expected="letters, digits, and single dots or dashes")
    folder = root.joinpath(*coordinates.group.split("."), coordinates.artifact, coordinates.version)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{coordinates.artifact}-{coordinates.version}"
    package, pom = folder / f"{stem}.aar", folder / f"{stem}.pom"
    with replaced_when_whole(package) as temporary:
        _link_or_copy(aar, temporary)
    with replaced_when_whole(pom) as temporary:
        temporary.write_text(_pom(coordinates), encoding="utf-8")
    for file in (package, pom):
        for algorithm in ("md5", "sha1", "sha256"):
            with replaced_when_whole(file.with_name(f"{file.name}.{algorithm}")) as temporary:
                temporary.write_text(_digest(algorithm, file), encoding="ascii")
    return folder


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _pom(coordinates: MavenCoordinates) -> str:
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:schemaLocation="http://maven.apache.org/POM/4.0.0 http://maven.apache.org/xsd/maven-4.0.0.xsd">
  <modelVersion>4.0.0</modelVersion>
  <groupId>{escape(coordinates.group)}</groupId>
  <artifactId>{escape(coordinates.artifact)}</artifactId>
  <version>{escape(coordinates.version)}</version>
  <packaging>aar</packaging>
  <description>A model packed by edgeslim, with its loader. The model's own license, where it is known, lies in its \
assets.</description>
  <licenses>
    <license>
      <name>Apache-2.0</name>
      <url>https://www.apache.org/licenses/LICENSE-2.0.txt</url>
      <comments>of the loader</comments>
    </license>
  </licenses>
  <dependencies>
    <dependency>
      <groupId>com.microsoft.onnxruntime</groupId>
      <artifactId>onnxruntime-android</artifactId>
      <version>{escape(coordinates.onnxruntime)}</version>
      <scope>compile</scope>
    </dependency>
  </dependencies>
</project>
"""


def _digest(algorithm: str, file: Path) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=algorithm == "sha256")
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

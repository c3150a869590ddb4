from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from edgeslim.errors import MissingToolError
from edgeslim.packaging.tokenizer_file import write_tokenizer
from edgeslim.runtime import JAVA_DIR, LOADER_JAR
from tests.tokenizing.token_tables import unicode_part

ROOT = Path(__file__).parents[2]

ORT_PACKAGE = "com.github.asus4.onnxruntime@0.4.9"  # MIT; carries ONNX Runtime's Android AAR
ORT_AAR = "package/Plugins/Android/onnxruntime.aar"

# Java and Android calls that came after API level 24: desugaring covers some of them, not all, and not in every app.
LATER_THAN_API_24 = [
    b"java/nio/file/",
    b"java/util/Base64",
    b"compareUnsigned",
    b"divideUnsigned",
    b"remainderUnsigned",
]


def test_committed_jar_is_what_the_sources_give(build_java: ModuleType, tmp_path: Path) -> None:
    major = build_java.javac_major()
    assert major == build_java.JAVAC_MAJOR, f"the jar is compared with javac {build_java.JAVAC_MAJOR}; this is {major}"
    for folder in ("one", "another"):
        rebuilt = build_java.build_jar(tmp_path / folder / "loader.jar")
        assert rebuilt.read_bytes() == LOADER_JAR.read_bytes(), "run python scripts/build_java.py and commit the jar"


def test_jar_holds_the_loader_only() -> None:
    with zipfile.ZipFile(LOADER_JAR) as jar:
        names = jar.namelist()
        assert jar.testzip() is None
        classes = {name: jar.read(name) for name in names}
    assert "io/edgeslim/EdgeslimModel.class" in names
    for name, data in classes.items():
        assert name.startswith("io/edgeslim/"), name
        assert name.endswith(".class"), name
        magic, _, major = struct.unpack(">IHH", data[:8])
        assert (magic, major) == (0xCAFEBABE, 52), f"{name} isn't a Java 8 class file"
        for later in LATER_THAN_API_24:
            assert later not in data, f"{name} uses {later.decode()}"


CHAT = ("Chat", "ChatSpec", "OrtTokenDecoder", "Sampler", "Sampling", "TextStream", "TokenDecoder")


def test_jar_is_small(tiny_bert: Path, tmp_path: Path) -> None:
    """At most 64 kB of code and Unicode's tables for a device, and 10 for the generate loop; not as a dex file."""
    with zipfile.ZipFile(LOADER_JAR) as jar:
        classes = {name: jar.read(name) for name in sorted(jar.namelist())}
    loop = {name for name in classes if name.removeprefix("io/edgeslim/").split(".")[0].split("$")[0] in CHAT}
    assert len(loop) == len(CHAT) + 1  # Chat.Listener
    assert len(zlib.compress(b"".join(classes[name] for name in sorted(loop)), 9)) <= 10_000
    code = zlib.compress(b"".join(classes[name] for name in classes if name not in loop), 9)
    assert write_tokenizer(tiny_bert, tmp_path / "tokenizer.etk") == ""
    tables = zlib.compress(unicode_part((tmp_path / "tokenizer.etk").read_bytes()), 9)
    assert len(tables) > 8_000
    assert len(code) + len(tables) <= 64_000


def test_missing_jdk_is_a_clear_error(build_java: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"no javac in JAVA_HOME[\s\S]*hint: apt-get install openjdk-17"):
        build_java.jdk_tool("javac")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no java in PATH"):
        build_java.jdk_tool("java")


def ort_package(folder: Path) -> Path:
    """The npm package with ONNX Runtime's AAR, which npm fetches once, by way of ``folder``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeslim" / "npm"
    package = cache / (ORT_PACKAGE.replace("@", "-") + ".tgz")
    if not package.exists():
        npm = shutil.which("npm")
        assert npm is not None, "no npm in PATH: apt-get install npm, or set EDGESLIM_ORT_CLASSES_JAR"
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "pack", ORT_PACKAGE, "--pack-destination", str(folder)], check=True, capture_output=True)
        shutil.move(folder / package.name, package)
    return package


def ort_classes(folder: Path) -> Path:
    """ONNX Runtime's classes.jar: EDGESLIM_ORT_CLASSES_JAR, or out of the npm package."""
    if given := os.environ.get("EDGESLIM_ORT_CLASSES_JAR"):
        return Path(given)
    classes = folder / "classes.jar"
    with tarfile.open(ort_package(folder)) as archive:
        aar = archive.extractfile(ORT_AAR)
        assert aar is not None
        with zipfile.ZipFile(io.BytesIO(aar.read())) as content:
            classes.write_bytes(content.read("classes.jar"))
    return classes


# What the sample's activity uses of Android beside the loader's stubs.
ACTIVITY_STUBS = {
    "android/app/Activity.java": """package android.app;
        public abstract class Activity extends android.content.Context {
            protected void onCreate(android.os.Bundle state) {}
            public void setContentView(android.view.View view) {}
            public final void runOnUiThread(Runnable action) {}
            protected void onDestroy() {}
            public void onTrimMemory(int level) {}
            public java.io.File getCacheDir() { return null; }
            public android.content.res.AssetManager getAssets() { return null; }
            public java.io.File getNoBackupFilesDir() { return null; }
        }""",
    "android/os/Bundle.java": "package android.os; public final class Bundle {}",
    "android/view/View.java": "package android.view; public class View {}",
    "android/widget/TextView.java": """package android.widget;
        public class TextView extends android.view.View {
            public TextView(android.content.Context context) {}
            public final void append(CharSequence text) {}
        }""",
    "com/example/edgeslim/BuildConfig.java": """package com.example.edgeslim;
        public final class BuildConfig { public static final String MODEL = "minilm"; }""",
}


@pytest.mark.slow
def test_loader_and_sample_compile_against_the_real_onnxruntime(build_java: ModuleType, tmp_path: Path) -> None:
    stubs, loader = tmp_path / "stubs", tmp_path / "loader"
    sources = sorted((JAVA_DIR / "stubs" / "android").rglob("*.java"))
    for name, text in ACTIVITY_STUBS.items():
        source = tmp_path / "sources" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text, encoding="utf-8")
        sources.append(source)
    build_java.compile_java(sources, stubs)
    real = ort_classes(tmp_path)
    build_java.compile_loader(loader, classpath=[real, stubs])
    assert (loader / "io" / "edgeslim" / "EdgeslimModel.class").is_file()
    activity = sorted((ROOT / "samples" / "android" / "app" / "src").rglob("*.java"))
    build_java.compile_java(activity, tmp_path / "app", classpath=[LOADER_JAR, real, stubs])
    assert (tmp_path / "app" / "com" / "example" / "edgeslim" / "MainActivity.class").is_file()

"""Makes a signed APK of an AAR's assets with Debian's Android tools: what Gradle would do, but for dex files.

There is no ``d8`` among those tools, so the app has no code (``android:hasCode="false"``): the APK shows that assets
and native libraries lie in it as Android wants them, and not that the app runs.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
TOOLS = ("aapt", "apksigner", "zipalign", "keytool")
PAGE_BYTES = 16_384
"""Pages of newer phones: native libraries that are mapped from the APK begin on one."""
_ALIGNMENT = 0xD935
_PASSWORD = "pass:android"
MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="com.example.edgeslim"
    android:versionCode="1" android:versionName="1.0">
    <uses-sdk android:minSdkVersion="24" android:targetSdkVersion="35" />
    <application android:label="edgeslim" android:hasCode="false" android:extractNativeLibs="false" />
</manifest>
"""


def need_tools() -> None:
    """Skips the test without the tools; in CI their absence is a failure."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not FRAMEWORK.exists():
        missing.append("android-framework-res")
    if not missing:
        return
    reason = f"no {', '.join(missing)}: apt-get install aapt apksigner zipalign android-framework-res"
    assert not os.environ.get("CI"), reason
    pytest.skip(reason)


def run_tool(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def build_apk(aar: Path, folder: Path, libraries: dict[str, bytes] | None = None) -> Path:
    """A signed APK with the AAR's assets and ``libraries`` (by names such as lib/arm64-v8a/libx.so)."""
    content = folder / "aar"
    with zipfile.ZipFile(aar) as archive:
        archive.extractall(content)
    (folder / "AndroidManifest.xml").write_text(MANIFEST, encoding="utf-8")
    raw, aligned, signed = (folder / name for name in ("raw.apk", "aligned.apk", "app.apk"))
    run_tool(
        *("aapt", "package", "-f", "-M", folder / "AndroidManifest.xml", "-I", FRAMEWORK),
        *("-A", content / "assets", "-0", "esz", "-F", raw),
    )
    align_entries(raw, aligned, libraries or {})
    store = folder / "test.keystore"
    run_tool(
        *("keytool", "-genkeypair", "-keystore", store, "-storepass", "android", "-keypass", "android"),
        *("-alias", "test", "-keyalg", "EC", "-validity", "2", "-dname", "CN=test"),
    )
    run_tool(
        *("apksigner", "sign", "--ks", store, "--ks-pass", _PASSWORD, "--min-sdk-version", "24"),
        *("--out", signed, aligned),
    )
    return signed


def align_entries(source: Path, target: Path, libraries: dict[str, bytes]) -> None:
    """Copies an archive: stored entries begin at multiples of 4, native libraries at the start of a page."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        entries = [(info.filename, info.compress_type, old.read(info)) for info in old.infolist()]
        entries += [(name, zipfile.ZIP_STORED, data) for name, data in libraries.items()]
        for name, compression, data in entries:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            if compression == zipfile.ZIP_STORED:
                multiple = PAGE_BYTES if name.endswith(".so") else 4
                assert new.fp is not None
                start = new.fp.tell() + 30 + len(name.encode()) + 6
                # The field that Android's tools use, so that signing keeps the place: multiple, then zeros.
                padding = -start % multiple
                info.extra = struct.pack("<HHH", _ALIGNMENT, 2 + padding, multiple) + bytes(padding)
            new.writestr(info, data)


def data_offsets(apk: Path) -> dict[str, int]:
    """Where the bytes of stored entries begin in the file, by the local headers."""
    offsets = {}
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as raw:
        for info in archive.infolist():
            if info.compress_type == zipfile.ZIP_STORED:
                raw.seek(info.header_offset + 26)
                name_bytes, extra_bytes = struct.unpack("<HH", raw.read(4))
                offsets[info.filename] = info.header_offset + 30 + name_bytes + extra_bytes
    return offsets


def load_alignments(library: bytes) -> list[int]:
    """The alignment of each LOAD segment of a 64-bit ELF file."""
    assert library[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", library, table + size * index) for index in range(count)]
    return [header[7] for header in headers if header[0] == 1]

"""The AAR within an app, as far as Debian's tools go: manifest, alignment, signature, contents."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from apk import PAGE_BYTES, build_apk, data_offsets, load_alignments, need_tools, run_tool

from edgeslim.codec import decode_file
from edgeslim.packaging.android import AndroidSettings, write_aar
from edgeslim.packaging.bundle import Bundle, write_manifest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.append(str(ROOT / "tests" / "java"))


def make_aar(folder: Path) -> Path:
    model, manifest, tokenizer = folder / "model.onnx", folder / "manifest.json", folder / "tokenizer.etk"
    model.write_bytes(b"graph " * 500)
    tokenizer.write_bytes(bytes(range(256)))
    files = {"model.onnx": model, "weights.bin": GOLDEN / "mixed.bin", "weights.esz": GOLDEN / "mixed.esz"}
    files["tokenizer/tokenizer.etk"] = tokenizer
    write_manifest(manifest, {"name": "tiny"}, files)
    extras = (("tokenizer/tokenizer.etk", tokenizer),)
    bundle = Bundle(name="tiny", model=model, packed=GOLDEN / "mixed.esz", manifest=manifest, extras=extras)
    return write_aar(bundle, AndroidSettings(min_sdk=24), folder / "tiny.aar")


def check_apk(apk: Path, aar: Path) -> None:
    badging = run_tool("aapt", "dump", "badging", apk)
    assert "package: name='com.example.edgeslim' versionCode='1' versionName='1.0'" in badging
    assert "sdkVersion:'24'" in badging
    assert "targetSdkVersion:'35'" in badging
    assert "Verification succes" in run_tool("zipalign", "-c", "-v", "4", apk)  # older ones spell it otherwise
    verified = run_tool("apksigner", "verify", "--verbose", "--print-certs", "--min-sdk-version", "24", apk)
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in verified
    assert "Signer #1 certificate DN: CN=test" in verified
    with zipfile.ZipFile(apk) as app, zipfile.ZipFile(aar) as library:
        assets = [name for name in library.namelist() if name.startswith("assets/")]
        assert [name for name in app.namelist() if name.startswith("assets/")] == assets
        for name in assets:
            assert app.read(name) == library.read(name)
        packed = app.getinfo("assets/edgeslim/tiny/weights.esz")
        assert packed.compress_type == zipfile.ZIP_STORED
    for name, offset in data_offsets(apk).items():
        assert offset % (PAGE_BYTES if name.endswith(".so") else 4) == 0, name


def test_apk_of_the_package(tmp_path: Path) -> None:
    need_tools()
    aar = make_aar(tmp_path)
    apk = build_apk(aar, tmp_path)
    check_apk(apk, aar)
    offset = data_offsets(apk)["assets/edgeslim/tiny/weights.esz"]
    packed = tmp_path / "weights.esz"
    packed.write_bytes(apk.read_bytes()[offset : offset + (GOLDEN / "mixed.esz").stat().st_size])
    decode_file(packed, tmp_path / "weights.bin")  # as a phone maps it: straight out of the APK
    assert (tmp_path / "weights.bin").read_bytes() == (GOLDEN / "mixed.bin").read_bytes()


def test_a_changed_apk_is_refused(tmp_path: Path) -> None:
    """The check can fail: a byte of the weights that isn't what was signed."""
    need_tools()
    apk = build_apk(make_aar(tmp_path), tmp_path)
    changed = bytearray(apk.read_bytes())
    changed[data_offsets(apk)["assets/edgeslim/tiny/weights.esz"] + 40] ^= 1
    apk.write_bytes(changed)
    done = subprocess.run(["apksigner", "verify", str(apk)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DOES NOT VERIFY" in done.stdout + done.stderr


@pytest.mark.slow
def test_apk_with_onnxruntime(tmp_path: Path) -> None:
    """ONNX Runtime's own libraries for arm64: their segments and their places in the APK fit pages of 16 KiB."""
    need_tools()
    from test_jar import ORT_AAR, ORT_PACKAGE, ort_package

    libraries = {}
    with tarfile.open(ort_package(tmp_path)) as archive:
        member = archive.extractfile(ORT_AAR)
        assert member is not None, ORT_PACKAGE
        with zipfile.ZipFile(io.BytesIO(member.read())) as runtime:
            for name in runtime.namelist():
                if name.startswith("jni/arm64-v8a/") and name.endswith(".so"):
                    libraries[name.replace("jni/", "lib/")] = runtime.read(name)
    assert len(libraries) == 2
    for name, library in libraries.items():
        assert min(load_alignments(library)) >= PAGE_BYTES, name
    aar = make_aar(tmp_path)
    apk = build_apk(aar, tmp_path, libraries)
    check_apk(apk, aar)
    assert "native-code: 'arm64-v8a'" in run_tool("aapt", "dump", "badging", apk)
    offsets = data_offsets(apk)
    assert set(libraries) <= set(offsets)

"""What ships to a device: the Java loader, and the C loader, which compiles with the decoder in ``codec/c``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CODEC_C_DIR", "C_DIR", "JAVA_DIR", "LOADER_JAR", "SWIFT_DIR", "UNICODE_TABLES"]

C_DIR = Path(__file__).parent / "c"
"""The loader in C, C99 and POSIX: ``edgeslim.h`` for a whole package, ``esz_load.h`` for its weights alone."""

CODEC_C_DIR = Path(__file__).parent.parent / "codec" / "c"
"""The decoder that it is compiled with."""

JAVA_DIR = Path(__file__).parent / "java"
LOADER_JAR = JAVA_DIR / "edgeslim-loader.jar"
"""The prebuilt Java loader, the ``classes.jar`` of every AAR. ``scripts/build_java.py`` builds it."""

UNICODE_TABLES = Path(__file__).parent / "unicode.bin"
"""What tokenizers must know of Unicode. ``scripts/make_unicode_tables.py`` writes it."""

SWIFT_DIR = Path(__file__).parent / "swift"
"""The loader for iOS, and templates of the files that each Swift package has of its own."""

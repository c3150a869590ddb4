"""What ships to a device: the Java loader, and the C loader, which compiles with the decoder in ``codec/c``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["C_DIR", "JAVA_DIR", "LOADER_JAR", "UNICODE_TABLES"]

C_DIR = Path(__file__).parent / "c"
"""``esz_load.h`` and ``esz_load.c``: C99 and POSIX."""

JAVA_DIR = Path(__file__).parent / "java"
LOADER_JAR = JAVA_DIR / "edgeslim-loader.jar"
"""The prebuilt Java loader, the ``classes.jar`` of every AAR. ``scripts/build_java.py`` builds it."""

UNICODE_TABLES = Path(__file__).parent / "unicode.bin"
"""What tokenizers must know of Unicode. ``scripts/make_unicode_tables.py`` writes it."""

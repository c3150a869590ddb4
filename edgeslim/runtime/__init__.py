"""What ships to a device: the Java loader here, other languages beside it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["JAVA_DIR", "LOADER_JAR"]

JAVA_DIR = Path(__file__).parent / "java"
LOADER_JAR = JAVA_DIR / "edgeslim-loader.jar"
"""The prebuilt Java loader, the ``classes.jar`` of every AAR. ``scripts/build_java.py`` builds it."""

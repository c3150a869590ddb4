"""Builds the Java loader, ``edgeslim/runtime/java/edgeslim-loader.jar``, from the sources beside it.

The jar is committed, so that no user needs a JDK. It comes out byte for byte the same wherever javac 17 builds it:
``--release 8`` takes the class files' version and the library's signatures from the JDK's own tables, ``-proc:none``
leaves out what hangs on the surroundings, and the entries are sorted, undated and uncompressed.
``tests/java/test_jar.py`` builds it again and compares the bytes.

    python scripts/build_java.py            # writes the jar
    python scripts/build_java.py --check    # exit code 1 where the committed jar isn't what the sources give
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeslim.errors import EdgeslimError, MissingToolError
from edgeslim.packaging.archive import Entry, write_zip
from edgeslim.runtime import JAVA_DIR, LOADER_JAR

JAVAC_MAJOR = 17
"""The compiler whose output is committed. Another one's may differ in a byte, though it works as well."""


def jdk_tool(name: str) -> str:
    """The path of ``javac`` or ``java``: from JAVA_HOME where that is set, else from PATH.

    Raises:
        MissingToolError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(name, path=str(Path(home) / "bin")) if home else shutil.which(name)
    if found is None:
        raise MissingToolError(
            "java",
            f"no {name} in {f'JAVA_HOME ({home})' if home else 'PATH'}",
            expected=f"a JDK {JAVAC_MAJOR}",
            hint=f"apt-get install openjdk-{JAVAC_MAJOR}-jdk-headless, or set JAVA_HOME",
        )
    return found


def javac_major() -> int:
    """The major version of the compiler in use."""
    output = subprocess.run([jdk_tool("javac"), "-version"], check=True, capture_output=True, text=True)
    match = re.search(r"javac (\d+)", output.stdout + output.stderr)
    if match is None:
        raise MissingToolError("java", f"javac -version prints {output.stdout!r}", expected="javac 17")
    return int(match[1])


def compile_java(sources: Sequence[Path], classes: Path, *, classpath: Sequence[Path] = ()) -> None:
    """Compiles ``sources`` into the folder ``classes``; a warning is an error, as everywhere here.

    Raises:
        EdgeslimError: the compiler's own words.
    """
    classes.mkdir(parents=True, exist_ok=True)
    lint = "-Xlint:all,-options,-serial,-processing,-classfile"
    command = [jdk_tool("javac"), "--release", "8", "-encoding", "UTF-8", "-proc:none", lint, "-Werror"]
    command += ["-g:none", "-implicit:none", "-d", str(classes)]
    # A named class path, even an empty one: without it javac takes the CLASSPATH of the surroundings.
    command += ["-classpath", os.pathsep.join(map(str, classpath)) or str(classes)]
    command += [str(path) for path in sorted(sources)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise EdgeslimError("javac", (result.stdout + result.stderr).strip() or f"exit code {result.returncode}")


def compile_loader(classes: Path, *, classpath: Sequence[Path] | None = None) -> None:
    """Compiles the loader into ``classes``, against the stubs or against ``classpath``."""
    with tempfile.TemporaryDirectory() as scratch:
        if classpath is None:
            compile_java(sorted((JAVA_DIR / "stubs").rglob("*.java")), Path(scratch))
            classpath = [Path(scratch)]
        compile_java(sorted((JAVA_DIR / "src" / "main" / "java").rglob("*.java")), classes, classpath=classpath)


def build_jar(out: Path) -> Path:
    """Writes the loader's jar to ``out``."""
    with tempfile.TemporaryDirectory() as scratch:
        classes = Path(scratch)
        compile_loader(classes)
        files = [path for path in classes.rglob("*") if path.is_file()]
        return write_zip(
            out, [Entry(name=path.relative_to(classes).as_posix(), data=path, stored=True) for path in files]
        )


def main() -> int:
    """Builds or checks the jar, as the command line says."""
    parser = argparse.ArgumentParser(description="Builds the Java loader's jar.")
    parser.add_argument("--check", action="store_true", help="compare with the committed jar instead of writing it")
    check = parser.parse_args().check
    if (major := javac_major()) != JAVAC_MAJOR:
        print(f"warning: javac {major}; the committed jar is javac {JAVAC_MAJOR}'s", file=sys.stderr)
    if not check:
        print(build_jar(LOADER_JAR))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        same = filecmp.cmp(build_jar(Path(scratch) / LOADER_JAR.name), LOADER_JAR, shallow=False)
    print(f"{LOADER_JAR}: {'is' if same else 'is NOT'} what its sources give")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeslimError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)

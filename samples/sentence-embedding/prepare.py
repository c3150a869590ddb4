"""Gets the text that the samples calibrate on and are measured with.

It comes from the source package of vaderSentiment 3.3.2 (MIT), which carries the scored snippets of Hutto and Gilbert,
"VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text" (ICWSM 2014): film reviews,
product reviews, newspaper editorials and tweets. Pip downloads it and checks its hash; what is needed is read straight
out of the archive.

Snippets whose mean score is 0 are left out; the label says whether it is above 0. One generator, seeded with 0,
shuffles the film snippets, then the product, editorial and tweet files in this order. The first 300 of each of these
three, shuffled together, are ``mix``.

======================  ==================================  =======================================================
file                    snippets                            for
======================  ==================================  =======================================================
calibration.txt         film 4000:4064, mix 0:64            a quick look: few, and soon calibrated
evaluation.txt          film 4100:4250, mix 100:450         every quality figure of the sentence embedding
calibration-large.txt   film 3000:3550, mix 450:900         calibration
test.jsonl              film 2000:3000                      the accuracy of the text classification
train.jsonl             film 0:2000, 4250: (8,000 of them)  training it
products.jsonl          product 300:1300                    its accuracy outside of what it was trained on
unlabelled.txt          product 1300:, editorials and       training on text alone
                        tweets 300:
======================  ==================================  =======================================================

No text is in two of these files. They are written only when they aren't there yet, and each by a rename.

Usage: ``python prepare.py [FOLDER]``; the folder is ``data`` beside this file unless given.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["prepare"]

PACKAGE = "vaderSentiment==3.3.2"
PACKAGE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
LICENSE = "vaderSentiment-3.3.2/LICENSE.txt"
SNIPPETS = "hutto_ICWSM_2014/{}_GroundTruth.txt"
FILM, OTHERS = "movieReviewSnippets", ("amazonReviewSnippets", "nytEditorialSnippets", "tweets")
MAX_MEMBER_BYTES = 8 << 20

FILES_SHA256 = {
    "LICENSE.txt": "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118",
    "calibration.txt": "20ffd5fdcdc55a7c95210d681e373c6814050cbfa39b1329a8470410656be3b4",
    "calibration-large.txt": "13c38ba1c9df78d939e6cc878768d4a46ba82c533e1511b66e39a2f6be6e60f9",
    "evaluation.txt": "71c47d90da9648e71869b42282a719bfa678024bfe21d06da65166fdcf37caca",
    "products.jsonl": "99a0897cfcf740a0bba9653a26614ee61762e4a486b771cd113d2962bd24c9dd",
    "test.jsonl": "23cc6076621144e82309e4f4b1c4320d54ceb63ef4b9d14926e63434bdfcf063",
    "train.jsonl": "988bbd625db3299e47a68ac471485c18720904f49e786d925ec47327bfb7a586",
    "unlabelled.txt": "b458bc3d485009392763dcf9f5765d515ea15755445d03e2081c1ef7ea11fa3c",
}

Snippet = tuple[str, int]


def prepare(folder: Path) -> bool:
    """Writes the files into ``folder`` unless they are there and whole; returns whether it had to.

    Raises:
        RuntimeError: the package can't be had, or isn't the expected one.
    """
    if all(_hash_file(folder / name) == digest for name, digest in FILES_SHA256.items()):
        return False
    with tempfile.TemporaryDirectory(prefix="vader-") as scratch:
        package = _download(Path(scratch)).read_bytes()
    if hashlib.sha256(package).hexdigest() != PACKAGE_SHA256:
        raise RuntimeError(f"{PACKAGE}: its source package isn't the expected one")
    contents = _select(_read_snippets(package)) | {"LICENSE.txt": _read_member(package, LICENSE)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in FILES_SHA256.items():
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise RuntimeError(f"{name} came out otherwise than on the authors' machine: please report it")
        _write_whole(folder / name, contents[name])
    return True


def _download(folder: Path) -> Path:
    """Downloads the source package by pip, as pip is configured here.

    To learn the package's metadata, pip runs its ``setup.py``; the hash makes sure beforehand that it is the known one.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "vaderSentiment", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or len(found) != 1:
        raise RuntimeError(f"pip can't download {PACKAGE}:\n{(done.stderr or done.stdout).strip()}")
    return found[0]


def _read_member(archive: bytes, name: str) -> bytes:
    """The content of one plain file of a tar archive. Nothing is unpacked, so no path in it matters."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.getmember(name)
        file = tar.extractfile(member) if member.isreg() and member.size <= MAX_MEMBER_BYTES else None
        if file is None:
            raise RuntimeError(f"{name}: not a plain file of at most {MAX_MEMBER_BYTES:,} bytes")
        return file.read()


def _read_snippets(package: bytes) -> dict[str, list[Snippet]]:
    """Text and label (1: scored above 0) by file; a line is an id, the mean score and the text."""
    archive = _read_member(package, ARCHIVE)
    snippets: dict[str, list[Snippet]] = {}
    for name in (FILM, *OTHERS):
        rows = _read_member(archive, SNIPPETS.format(name)).decode("utf-8").split("\r\n")
        scored = [(float(score), text.strip()) for _, score, text in (row.split("\t", 2) for row in rows if row)]
        snippets[name] = [(text, int(score > 0)) for score, text in scored if score != 0]
    return snippets


def _select(snippets: dict[str, list[Snippet]]) -> dict[str, bytes]:
    """The content of each file, as the table above has it."""
    generator = random.Random(0)
    film = list(snippets[FILM])
    generator.shuffle(film)
    mix: list[Snippet] = []
    rest: dict[str, list[Snippet]] = {}
    for name in OTHERS:
        shuffled = list(snippets[name])
        generator.shuffle(shuffled)
        mix += shuffled[:300]
        rest[name] = shuffled[300:]
    generator.shuffle(mix)
    calibration, evaluation = film[4000:4064] + mix[0:64], film[4100:4250] + mix[100:450]
    test = film[2000:3000]
    large = _leave_out(film[3000:3550] + mix[450:900], calibration + evaluation + test)
    train = _leave_out(film[0:2000] + film[4250:], calibration + evaluation + test + large)[:8000]
    products = _leave_out(rest[OTHERS[0]][:1000], calibration + evaluation + test + large + train)
    others = rest[OTHERS[0]][1000:] + rest[OTHERS[1]] + rest[OTHERS[2]]
    generator.shuffle(others)
    unlabelled = _leave_out(others, calibration + evaluation + test + large + train + products)
    return {
        "calibration.txt": _as_lines(text for text, _ in calibration),
        "calibration-large.txt": _as_lines(text for text, _ in large),
        "evaluation.txt": _as_lines(text for text, _ in evaluation),
        "products.jsonl": _as_lines(json.dumps({"text": text, "label": label}) for text, label in products),
        "test.jsonl": _as_lines(json.dumps({"text": text, "label": label}) for text, label in test),
        "train.jsonl": _as_lines(json.dumps({"text": text, "label": label}) for text, label in train),
        "unlabelled.txt": _as_lines(text for text, _ in unlabelled),
    }


def _leave_out(snippets: list[Snippet], taken: list[Snippet]) -> list[Snippet]:
    """``snippets`` without those whose words are in ``taken``, whatever their case, and without repetitions."""
    seen = {_words(text) for text, _ in taken}
    fresh = []
    for text, label in snippets:
        if _words(text) not in seen:
            seen.add(_words(text))
            fresh.append((text, label))
    return fresh


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _as_lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def main() -> int:
    """Prepares the folder named on the command line; 0 if the files are there afterwards."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    try:
        written = prepare(folder)
    except RuntimeError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {'written' if written else 'already whole'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

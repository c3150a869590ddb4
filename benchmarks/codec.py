"""The ESZ coder beside zlib, zstd, xz, huff0 and others, on the real weights of all-MiniLM-L6-v2.

Bits a weight against the order-0 entropy (H0), and speed on one thread in MB of decoded bytes a second. All coders run
in turn, round after round, in one process; speeds are medians of its CPU time. ESZ checks all its hashes, and
its time to encode is that of a whole container; zstd and zlib code the payload as one stream, huff0 in blocks of
128 KiB without a hash. All decode into memory that exists already, but those behind a Python package (marked *).

    python benchmarks/codec.py [--quick] [--json] [--rounds N] [--only WORD] [--coders NAME,...]

huff0 comes out of Debian's static libzstd (`apt-get install libzstd-dev`). zipnn, nncodec, constriction and openzl take
part where they are installed. What is missing is named under the table.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import importlib.util
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from codec_payloads import Bytes, Payload, load_matrices, make_payloads
from codec_peers import OPTIONAL, Coder, whole

from edgeslim.codec import Segment, encode_container
from edgeslim.codec.library import load_library

SLOW_ENCODERS = ("zlib -9", "zstd -19", "xz -9", "nncodec *")
"""These encode once: it takes seconds, and nobody reads their encoding speed to three digits."""


def esz() -> Coder:
    """Whole containers, hashes checked."""
    library = load_library()
    library.esz_decoder_bytes.restype = ctypes.c_size_t
    library.esz_decode_image.argtypes = (
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32,
        ctypes.c_void_p,
    )  # fmt: skip
    decoder = ctypes.create_string_buffer(library.esz_decoder_bytes())

    def encode(payload: Payload) -> bytes:
        half = payload.arrays[0].nbytes * 2 == payload.shapes[0][0] * payload.shapes[0][1]
        return encode_container(
            [
                Segment(str(number), array, "uint4x2" if half else "uint8", shape)
                for number, (array, shape) in enumerate(zip(payload.arrays, payload.shapes, strict=True))
            ]
        )

    def decode(coded: bytes, out: Bytes) -> Bytes:
        status = library.esz_decode_image(decoder, coded, len(coded), out.ctypes.data, out.nbytes, 0, None)
        assert status == 0, status
        return out

    return Coder("ESZ", encode, decode)


def zlib_coder() -> Coder:
    """The machine's libz at level 9."""
    library = ctypes.CDLL(ctypes.util.find_library("z"))

    def encode(payload: Payload) -> bytes:
        data = whole(payload)
        out = ctypes.create_string_buffer(data.nbytes + data.nbytes // 100 + 64)
        size = ctypes.c_ulong(len(out))
        source = ctypes.c_void_p(data.ctypes.data)
        assert library.compress2(out, ctypes.byref(size), source, ctypes.c_ulong(data.nbytes), 9) == 0
        return ctypes.string_at(out, size.value)

    def decode(coded: bytes, out: Bytes) -> Bytes:
        size = ctypes.c_ulong(out.nbytes)
        target = ctypes.c_void_p(out.ctypes.data)
        assert library.uncompress(target, ctypes.byref(size), coded, ctypes.c_ulong(len(coded))) == 0
        return out

    return Coder("zlib -9", encode, decode)


def zstd_coder(library: ctypes.CDLL, level: int) -> Coder:
    """The machine's libzstd."""
    library.ZSTD_compressBound.restype = ctypes.c_size_t
    library.ZSTD_compress.restype = ctypes.c_size_t
    library.ZSTD_decompress.restype = ctypes.c_size_t

    def encode(payload: Payload) -> bytes:
        data = whole(payload)
        out = ctypes.create_string_buffer(library.ZSTD_compressBound(ctypes.c_size_t(data.nbytes)))
        source = ctypes.c_void_p(data.ctypes.data)
        size = library.ZSTD_compress(out, ctypes.c_size_t(len(out)), source, ctypes.c_size_t(data.nbytes), level)
        return ctypes.string_at(out, size)

    def decode(coded: bytes, out: Bytes) -> Bytes:
        target = ctypes.c_void_p(out.ctypes.data)
        size = library.ZSTD_decompress(target, ctypes.c_size_t(out.nbytes), coded, ctypes.c_size_t(len(coded)))
        assert size == out.nbytes
        return out

    return Coder(f"zstd -{level}", encode, decode)


def xz_coder() -> Coder:
    """The xz -9 of the standard library."""

    def decode(coded: bytes, _out: Bytes) -> Bytes:
        return np.frombuffer(lzma.decompress(coded), np.uint8)

    return Coder("xz -9", lambda payload: lzma.compress(whole(payload).tobytes(), preset=9), decode)


def huff0_coder(folder: Path) -> Coder | str:
    """Compiles huff0.c; what is missing, if it cannot be."""
    library = folder / "huff0.so"
    command = ["gcc", "-O3", "-shared", "-fPIC", str(Path(__file__).with_name("huff0.c")), "-l:libzstd.a"]
    try:
        subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"huff0: apt-get install gcc libzstd-dev ({str(getattr(error, 'stderr', error))[-120:].strip()})"
    loaded.huff0_encode.restype = loaded.huff0_decode.restype = ctypes.c_size_t

    def encode(payload: Payload) -> bytes:
        data = whole(payload)
        out = ctypes.create_string_buffer(2 * data.nbytes + 4096)
        size = loaded.huff0_encode(out, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes))
        return ctypes.string_at(out, size)

    def decode(coded: bytes, out: Bytes) -> Bytes:
        assert loaded.huff0_decode(ctypes.c_void_p(out.ctypes.data), coded, ctypes.c_size_t(len(coded))) == out.nbytes
        return out

    return Coder("huff0", encode, decode)


def find_coders(folder: Path, *, quick: bool) -> tuple[list[Coder], list[str]]:
    """The coders of this machine, and a line for each that is missing."""
    found, missing = [esz(), zlib_coder()], []
    zstd = ctypes.util.find_library("zstd")
    if zstd:
        found += [zstd_coder(ctypes.CDLL(zstd), level) for level in ((3,) if quick else (3, 19))]
    else:
        missing.append("zstd: apt-get install libzstd1")
    if not quick:
        found.append(xz_coder())
    huff0 = huff0_coder(folder)
    found += [huff0] if isinstance(huff0, Coder) else []
    missing += [huff0] if isinstance(huff0, str) else []
    for package, make in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            missing.append(f"{package}: pip install --no-deps {package}")
        elif not quick:
            try:
                found.append(make())
            except Exception as error:  # another project's package may lack what it needs itself
                missing.append(f"{package}: {type(error).__name__}: {error}"[:120])
    return found, missing


def measure(payload: Payload, coders: list[Coder], rounds: int) -> dict[str, dict[str, float | str]]:
    """One payload by all coders."""
    image = whole(payload)
    results: dict[str, dict[str, float | str]] = {}
    coded: dict[str, bytes] = {}
    encoding: dict[str, list[float]] = {coder.name: [] for coder in coders}
    decoding: dict[str, list[float]] = {coder.name: [] for coder in coders}
    out = np.zeros_like(image)
    for turn in range(rounds):
        for coder in coders:
            if coder.name in results or (turn and coder.name in SLOW_ENCODERS):
                continue
            started = time.process_time()
            try:
                coded[coder.name] = coder.encode(payload)
            except Exception as error:  # another project's package may refuse a payload
                results[coder.name] = {"failed": f"{type(error).__name__}: {error}"[:80]}
                continue
            encoding[coder.name].append(time.process_time() - started)
    for turn in range(rounds + 1):
        for coder in coders:
            if coder.name in results or (turn > 1 and decoding[coder.name][-1] > 0.5):
                continue
            out[:] = 0
            started = time.process_time()
            found = coder.decode(coded[coder.name], out)
            taken = time.process_time() - started
            if turn == 0:
                assert np.array_equal(found, image), (payload.name, coder.name)
            else:
                decoding[coder.name].append(taken)
    for coder in coders:
        if coder.name in results:
            continue
        bits = 8 * len(coded[coder.name]) / payload.weights
        results[coder.name] = {
            "bits": bits,
            "over_h0_ratio": bits / payload.h0_bits - 1,
            "encode_mb_s": payload.bytes / statistics.median(encoding[coder.name]) / 1e6,
            "decode_mb_s": payload.bytes / statistics.median(decoding[coder.name]) / 1e6,
        }
    return results


def print_payload(payload: Payload, results: dict[str, dict[str, float | str]]) -> None:
    """One payload's rows of the table."""
    print(f"| **{payload.name}** | {payload.h0_bits:.3f} (H0) | | | |")
    for name, row in results.items():
        if "failed" in row:
            print(f"| {name} | failed: {row['failed']} | | | |")
            continue
        print(
            f"| {name} | {row['bits']:.3f} | {100 * float(row['over_h0_ratio']):+.2f} % "
            f"| {row['encode_mb_s']:.0f} | {row['decode_mb_s']:.0f} |",
            flush=True,
        )


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a fifth of the matrices, the fast coders only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="payloads whose name has this word")
    parser.add_argument("--coders", default="", help="the coders to run, by the start of their names")
    arguments = parser.parse_args()
    answers: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        coders, missing = find_coders(Path(folder), quick=arguments.quick)
        wanted = tuple(arguments.coders.split(","))
        coders = [coder for coder in coders if coder.name.startswith(wanted)]
        if not arguments.json:
            print("| | bits a weight | over H0 | encode MB/s | decode MB/s |\n|---|---|---|---|---|")
        for payload in make_payloads(load_matrices(quick=arguments.quick)):
            if arguments.only not in payload.name:
                continue
            results = measure(payload, coders, arguments.rounds)
            answers[payload.name] = {"h0_bits": payload.h0_bits, "weights": payload.weights, "coders": results}
            if not arguments.json:
                print_payload(payload, results)
    if arguments.json:
        json.dump({"payloads": answers, "missing": missing}, sys.stdout, indent=2)
        print()
        return
    for line in missing:
        print(f"\nnot measured: {line}")


if __name__ == "__main__":
    main()

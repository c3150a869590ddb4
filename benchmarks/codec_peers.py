"""Coders of other Python packages for `codec.py`, each used where its package is installed.

zipnn, nncodec (DeepCABAC, ISO/IEC 15938-17), constriction (ANS with each matrix's own distribution) and openzl.
Their wheels need nothing of what else they ask for: `pip install --no-deps zipnn nncodec constriction openzl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from codec_payloads import Bytes, Payload

__all__ = ["OPTIONAL", "Coder", "whole"]


@dataclass(frozen=True)
class Coder:
    """``decode`` takes what ``encode`` returned and an array that it may fill; it returns the decoded bytes."""

    name: str
    encode: Callable[[Payload], bytes]
    decode: Callable[[bytes, Bytes], Bytes]


def whole(payload: Payload) -> Bytes:
    """The payload in one piece."""
    return np.concatenate(payload.arrays)


def zipnn_coder() -> Coder:
    """The package zipnn. It knows float types only: of those, float32, in four planes of bytes, codes these best."""
    from zipnn import ZipNN

    coder = ZipNN(bytearray_dtype="float32", threads=1)

    def decode(coded: bytes, _out: Bytes) -> Bytes:
        return np.frombuffer(coder.decompress(coded), np.uint8)

    return Coder("zipnn *", lambda payload: bytes(coder.compress(whole(payload).tobytes())), decode)


def nncodec_coder() -> Coder:
    """The package nncodec's DeepCABAC coder by itself, a stream a matrix.

    It codes signed integers by sign and magnitude. So nibbles are unpacked and shifted to 0, and indices of clusters,
    which are in the order of their values, are put on both sides of 0.
    """
    from nncodec.extensions import deepCABAC

    none, unary, off = np.empty(0, np.int8), 10, deepCABAC.HdspMode.AlwaysOff

    def encode(payload: Payload) -> bytes:
        parts = []
        for array, shape in zip(payload.arrays, payload.shapes, strict=True):
            middle = 0
            if 2 * array.nbytes == shape[0] * shape[1]:
                values, kind = _nibbles(array).astype(np.int32) - 8, 1
            elif "k-means" in payload.name:
                kind, middle = 2, (int(array.max()) + 1) // 2
                index = array.astype(np.int32)
                values = np.where(index == 0, 0, index - middle - (index <= middle))
            else:
                values, kind = array.view(np.int8).astype(np.int32), 0
            encoder = deepCABAC.Encoder()
            encoder.initCtxModels(unary, 0)
            matrix = np.ascontiguousarray(values.reshape(shape), np.int32)
            encoder.encodeLayer(matrix, 0, 0, 0, 0, 0, np.zeros(shape[0], np.int32), off, none, 0, 0)
            stream = encoder.finish().tobytes()
            parts.append(np.array([*shape, kind, middle, len(stream)], "<u4").tobytes() + stream)
        return b"".join(parts)

    def decode(coded: bytes, _out: Bytes) -> Bytes:
        at, found = 0, []
        while at < len(coded):
            rows, columns, kind, middle, size = np.frombuffer(coded, "<u4", 5, at).tolist()
            decoder = deepCABAC.Decoder()
            decoder.setStream(np.frombuffer(coded, np.uint8, size, at + 20))
            decoder.initCtxModels(unary)
            values = np.zeros((rows, columns), np.int32)
            decoder.decodeLayer(values, 0, 0, 0, 0, off, none, 0, 0)
            at += 20 + size
            if kind == 1:
                pairs = (values.reshape(-1, 2) + 8).astype(np.uint8)
                found.append(pairs[:, 0] | pairs[:, 1] << 4)
            elif kind == 2:
                found.append(np.where(values == 0, 0, values + middle + (values < 0)).astype(np.uint8).reshape(-1))
            else:
                found.append(values.astype(np.int8).view(np.uint8).reshape(-1))
        return np.concatenate(found)

    return Coder("nncodec *", encode, decode)


def _nibbles(array: Bytes) -> Bytes:
    """Two values a byte, the earlier one in the low nibble, as one a byte."""
    return np.stack([array & 15, array >> 4], axis=1).reshape(-1)


def constriction_coder() -> Coder:
    """A range coder with each matrix's own distribution of bytes."""
    import constriction

    def encode(payload: Payload) -> bytes:
        parts = []
        for array in payload.arrays:
            counts = np.bincount(array, minlength=256).astype(np.float32)
            model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(array.astype(np.int32), model)
            words = coder.get_compressed().tobytes()
            parts.append(np.array([array.size, len(words)], "<u4").tobytes() + counts.tobytes() + words)
        return b"".join(parts)

    def decode(coded: bytes, out: Bytes) -> Bytes:
        at, done = 0, 0
        while at < len(coded):
            size, words = np.frombuffer(coded, "<u4", 2, at).tolist()
            counts = np.frombuffer(coded, np.float32, 256, at + 8)
            model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(coded, np.uint32, words // 4, at + 1032))
            out[done : done + size] = coder.decode(model, size)
            done += size
            at += 1032 + words
        return out

    return Coder("constriction *", encode, decode)


def openzl_coder() -> Coder:
    """OpenZL with its general graph for bytes."""
    import openzl.ext as zl

    def encode(payload: Payload) -> bytes:
        compressor = zl.Compressor()
        compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        compressor.select_starting_graph(zl.graphs.Compress()(compressor))
        context = zl.CCtx()
        context.ref_compressor(compressor)
        data = whole(payload)  # an input doesn't keep its array alive
        return bytes(context.compress([zl.Input(zl.Type.Serial, data)]))

    def decode(coded: bytes, _out: Bytes) -> Bytes:
        return np.frombuffer(zl.DCtx().decompress(coded)[0].content.as_bytes(), np.uint8)

    return Coder("openzl *", encode, decode)


OPTIONAL = {
    "zipnn": zipnn_coder, "nncodec": nncodec_coder, "constriction": constriction_coder, "openzl": openzl_coder
}  # fmt: skip

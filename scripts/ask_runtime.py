"""Asks the ONNX Runtime that this interpreter loads: its kernels and schemas, and which models it opens.

``list_kernels.py`` runs this with a PYTHONPATH of the unpacked release alone, so it needs the standard library and
onnxruntime only::

    python scripts/ask_runtime.py dump OUT
    python scripts/ask_runtime.py probe MODELS RESULTS START
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any


def dump(out: Path) -> None:
    """Writes kernels, schemas and accepted versions as JSON."""
    from onnxruntime.capi import _pybind_state as state

    kernels = [
        {
            "domain": item.domain,
            "name": item.op_name,
            "versions": list(item.version_range),
            "types": item.type_constraints,
        }
        for item in state.get_all_opkernel_def()
        if item.provider == "CPUExecutionProvider"
    ]

    def formal(parameter: Any) -> list[object]:
        option = str(parameter.option).rpartition(".")[2]
        return [parameter.name, parameter.typeStr, option, parameter.isHomogeneous]

    schemas = [
        {
            "domain": item.domain,
            "name": item.name,
            "since": item.since_version,
            "deprecated": item.deprecated,
            "inputs": [formal(parameter) for parameter in item.inputs],
            "outputs": [formal(parameter) for parameter in item.outputs],
            "types": {entry.type_param_str: sorted(entry.allowed_type_strs) for entry in item.type_constraints},
            "attributes": {
                name: str(attribute.type).rpartition(".")[2]
                for name, attribute in item.attributes.items()
                if attribute.required
            },
        }
        for item in state.get_all_operator_schema()
    ]
    out.write_text(json.dumps({"kernels": kernels, "schemas": schemas}))


def probe(models: Path, results: Path, start: int) -> None:
    """Opens the models from number ``start`` on and appends one line of result each: ``ok`` or the error."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.set_default_logger_severity(4)
    data = memoryview(models.read_bytes())
    at = 0
    with results.open("a") as out:
        for number in itertools.count():
            if at >= len(data):
                return
            (size,) = struct.unpack_from("<I", data, at)
            at += 4 + size
            if number < start:
                continue
            try:
                ort.InferenceSession(bytes(data[at - size : at]), options, providers=["CPUExecutionProvider"])
                answer = "ok"
            except Exception as error:  # each status has a class of its own
                answer = str(error)
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    if sys.argv[1] == "dump":
        dump(Path(sys.argv[2]))
    else:
        probe(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

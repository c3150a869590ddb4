"""A model in ONNX Runtime's own format, and the list of what a reduced runtime has to have for it.

``.ort`` is one file with graph and weights; the runtime has chosen its fused operators already, so it loads where
optimizers and the ONNX parser were left out (a "minimal build"). ``required_operators_and_types.config`` is what such a
build takes as ``--include_ops_by_config``. What is saved are the fusions that hold on every CPU (the runtime's level
"extended"); layouts that suit one kind of CPU are left to none.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from edgeslim.errors import BadInputError
from edgeslim.replacing import replaced_when_whole
from edgeslim.session import make_options, make_session

__all__ = ["CONFIG_NAME", "write_ort_image"]

CONFIG_NAME = "required_operators_and_types.config"


def write_ort_image(model: Path, out: Path) -> Path:
    """Writes ``model`` (with its weights beside it) to the file ``out``, and the list beside that; returns its path.

    Raises:
        BadInputError: the runtime can't open the model, or ``out`` doesn't end in ``.ort``.
    """
    import onnxruntime as ort
    from onnxruntime.tools.ort_format_model import create_config_from_models

    if out.suffix != ".ort":
        raise BadInputError(str(out), f'a name that ends in "{out.suffix}"', expected="one that ends in .ort")
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # else it tells of each file
    with replaced_when_whole(out) as temporary:
        options = make_options(1)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(temporary)
        options.add_session_config_entry("session.save_model_format", "ORT")
        make_session(model, options)
    config = out.with_name(CONFIG_NAME)
    with replaced_when_whole(config) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the runtime's tool leaves closing to the garbage collector
        create_config_from_models([out], temporary, enable_type_reduction=True)
        lines = temporary.read_text(encoding="utf-8").splitlines()
        kept = [f"# Generated from {out.name}", *(line for line in lines if not line.startswith("#"))]
        temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return config

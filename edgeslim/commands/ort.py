"""``edgeslim ort PACKAGE``: the model of a package in ONNX Runtime's own format, for reduced builds of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["write_ort"]

MOST_DIFFERENCE = 1e-3


def write_ort(
    package: Annotated[str, typer.Argument(help="An .aar or a .tar.gz that edgeslim built.")],
    *,
    out: Annotated[str | None, typer.Option("-o", "--out", help="The image (default: NAME.ort).")] = None,
) -> None:
    """Write a package's model as an .ort image, and required_operators_and_types.config beside it."""
    from edgeslim.checks.package import check_files, check_weights
    from edgeslim.errors import BadInputError, CheckError
    from edgeslim.graphs.graph import MODEL_NAME, load_graph
    from edgeslim.packaging.ort_image import write_ort_image
    from edgeslim.packaging.unpack import unpack_package
    from edgeslim.recheck_inputs import example_feed
    from edgeslim.report import format_value
    from edgeslim.session import max_difference, open_runner

    with tempfile.TemporaryDirectory(prefix="edgeslim-ort-") as scratch:
        found = unpack_package(Path(package), Path(scratch))
        for finding in [*check_files(found), *check_weights(found)]:
            if finding.verdict == "fail":
                raise BadInputError(package, f"damaged: {finding.note}", expected="the package as it was built")
        model = found.folder / MODEL_NAME
        load_graph(model)  # refuses weights outside the package
        image = Path(out) if out is not None else Path(f"{found.manifest.name}.ort")
        config = write_ort_image(model, image)
        feed = example_feed(found.manifest)
        if feed is not None:
            largest, smallest = max_difference(open_runner(model)(feed), open_runner(image)(feed))
            if not smallest > 1 - MOST_DIFFERENCE:
                raise CheckError(str(image), f"outputs differ by {largest:g}", expected="those of the package's model")
    typer.echo(f"{image}: {format_value(float(image.stat().st_size), 'bytes')}")
    typer.echo(f"{config}: what a reduced ONNX Runtime has to have for it")

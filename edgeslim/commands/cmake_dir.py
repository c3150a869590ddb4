"""``edgeslim cmake-dir``: where CMake finds the package Edgeslim."""

from __future__ import annotations

import typer

__all__ = ["cmake_dir"]


def cmake_dir() -> None:
    """Print the folder of EdgeslimConfig.cmake, for -DEdgeslim_DIR: its edgeslim_add_model() builds models."""
    from edgeslim.packaging.cmake_files import CMAKE_DIR

    typer.echo(CMAKE_DIR)

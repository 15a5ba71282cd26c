"""The version, from the installed package's metadata."""

from importlib import metadata


def version() -> str:
    """Returns the installed version, or ``"0+source"`` where the package runs from a source tree."""
    try:
        return metadata.version("sciml-monarch")
    except metadata.PackageNotFoundError:
        return "0+source"

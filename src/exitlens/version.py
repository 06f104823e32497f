"""The version of the package, which every artefact carries."""

__version__ = "0.1.0"

"""The installed version of Lorica."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lorica")
except PackageNotFoundError:  # a source tree on PYTHONPATH, never installed
    __version__ = "0+unknown"

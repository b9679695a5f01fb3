"""HTTP: schemas, routes, keys, queues, metrics; and which onecard this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def _version() -> str:
    try:
        return installed_version("onecard")
    except PackageNotFoundError:  # run from a source tree that nobody installed
        return "0+unknown"


VERSION = _version()
SYSTEM_FINGERPRINT = f"onecard-{VERSION}"

"""The log of the HTTP layer beneath the application: what goes wrong here, not what clients send wrongly."""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger(__name__)


class _ClientFaults(logging.Filter):
    """Drops what is the client's fault: it has been answered 400, or hung up while its answer was written.
    aiohttp would write a traceback for each; port scans and TLS on a plain port must not fill the disk."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError))


log.addFilter(_ClientFaults())

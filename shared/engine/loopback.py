"""Small HTTP requests to an engine on loopback: no proxies, no sessions, nothing to import."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


def get(url: str, timeout: float = 5.0) -> tuple[int, str]:
    """Status and body of a GET.

    Raises:
        OSError: nobody answers (`TimeoutError` when somebody listens but does not answer).
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def get_json(url: str, timeout: float = 5.0) -> Any:
    """The JSON body of a successful GET.

    Raises:
        OSError: nobody answers, or it was no success, or no JSON.
    """
    status, body = get(url, timeout)
    if status != 200:
        raise ConnectionError(f"{url} answered {status}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ConnectionError(f"{url} answered no JSON") from error

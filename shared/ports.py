"""The port of a page that a person opens: `PORT=`, the usual one, or any free one."""

from __future__ import annotations

import os
import socket

from shared.errors import UserError


def bound_socket(preferred: int) -> socket.socket:
    """A loopback socket at `PORT=`; without that at `preferred`, or where there is room.

    Raises:
        UserError: the port that `PORT=` names is in use, or no port.
    """
    wanted = os.environ.get("PORT", "")
    ports = [preferred, 0] if not wanted else [int(wanted)] if wanted.isdigit() else []
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            listener.close()
        else:
            return listener
    raise UserError(f"PORT={wanted} cannot be had. Leave it out, or name a free one.")

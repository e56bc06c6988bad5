"""Serve the reviewer's page on loopback."""

from __future__ import annotations

import shutil

import uvicorn
from rich.console import Console

from shared.domains.worlds import DOMAINS
from shared.errors import UserError
from shared.paths import STATE
from shared.ports import bound_socket
from shared.review.demo import load_approval, open_demo
from shared.review.page import Guard, make_page

_PREFERRED_PORT = 8400


def serve_review(console: Console, target: str, domain: str, reviewer: str) -> None:
    """Open the page on a fresh demo world, until Ctrl-C.

    Raises:
        UserError: there is no such domain, the port that `PORT=` names is in use, or approval.py
            can't be used yet.
    """
    domain = domain or "finance"
    if domain not in DOMAINS:
        raise UserError(f"DOMAIN={domain}: it takes {', '.join(DOMAINS)}.")
    module = load_approval(target)
    folder = STATE / "review" / domain
    shutil.rmtree(folder, ignore_errors=True)
    reviewer = reviewer or "reviewer"
    desk, world = open_demo(module, folder, domain, reviewers=(reviewer,))
    with bound_socket(_PREFERRED_PORT) as listener:
        guard = Guard(port=listener.getsockname()[1])
        console.print(
            f"Reviewer's page, you are [bold]{reviewer}[/]: {guard.address}", soft_wrap=True
        )
        console.print("The address is yours alone: who has it decides in your name. Ctrl-C stops.")
        page = make_page(module, desk, world, reviewer=reviewer, guard=guard)
        config = uvicorn.Config(page, log_level="warning", access_log=False, server_header=False)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            desk.close()

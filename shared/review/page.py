"""The reviewer's page: what waits, on which facts, and the decision. Server-rendered, no script.

It decides nothing by itself: every click becomes `Desk.decide` of the learner's approval.py, with
the fingerprint that this very page showed and the reviewer that the start of the server named.
Texts of models and customers are data: escaped by the template, and fenced by a policy that lets
the browser run and load nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from shared.domains.worlds import ToolSpec, World

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # "no-referrer" would make a form's Origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """Who may use the page: the browser that was opened with this start's address, and no other.

    Attributes:
        port: where the page listens.
        token: in the address, exchanged for the cookie.
        session: the cookie's value.
        form: in each form; a page of somebody else's can't know it.
    """

    port: int
    token: str = field(default_factory=secrets.token_urlsafe, repr=False)
    session: str = field(default_factory=secrets.token_urlsafe, repr=False)
    form: str = field(default_factory=secrets.token_urlsafe, repr=False)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """The cookie's name. Browsers keep cookies by host, whatever the port."""
        return f"review-{self.port}"

    def refuses(self, request: Request) -> str:
        """Why a request is not let through; empty when it is."""
        host = request.headers.get("host", "")
        if host not in (f"127.0.0.1:{self.port}", f"localhost:{self.port}"):
            return "This page is for 127.0.0.1 only."  # else a stranger's name could lead here
        if not same(request.cookies.get(self.cookie, ""), self.session):
            return "Open the address that make review printed. It changes with each start."
        if request.method not in ("GET", "HEAD"):
            if request.headers.get("origin", f"http://{host}") != f"http://{host}":
                return "The form was not sent by this page."
            if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
                return "The form was not sent by this page."
        return ""


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def make_page(
    module: ModuleType, desk: Any, world: World, *, reviewer: str, guard: Guard
) -> FastAPI:
    """The page as an application.

    Args:
        module: the learner's approval.py, for its errors.
        desk: its desk.
        world: names the tools and their arguments.
        reviewer: in whose name the page decides.
    """
    app = FastAPI(openapi_url=None)
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["since"] = duration

    def show(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        values |= {"reviewer": reviewer, "domain": world.domain, "now": desk.clock()}
        return HTMLResponse(templates.get_template(template).render(**values), status)

    def tell(title: str, text: str, status: int) -> HTMLResponse:
        return show("message.html", status, title=title, text=text)

    def there(approval_id: str) -> bool:
        try:
            desk.trail.find(approval_id)
        except KeyError:
            return False
        return True

    def show_case(
        approval_id: str,
        status: int = 200,
        problems: Mapping[str, str] | None = None,
        typed: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> HTMLResponse:
        entry = desk.trail.find(approval_id)
        approval = entry.approval
        latest = desk.trail.latest(approval.thread_id, approval.call_id)
        spec = world.tool(approval.tool)
        return show(
            "case.html",
            status,
            entry=entry,
            approval=approval,
            anew=latest.approval.id if latest and latest.approval.id != approval_id else "",
            answer=desk.run(approval.thread_id).answer if entry.decision else "",
            description=spec.description,
            fields=editable(spec, approval.arguments, module.SAME),
            problems=problems or {},
            typed=typed or approval.arguments,
            note=note,
            form=guard.form,
        )

    @app.middleware("http")
    async def guarded(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        token = request.query_params.get("token")
        if request.method == "GET" and request.url.path == "/" and token is not None:
            response: Response = RedirectResponse("/", 303)
            if same(token, guard.token):
                response.set_cookie(guard.cookie, guard.session, httponly=True, samesite="strict")
        elif why := guard.refuses(request):
            response = tell("Not let in", why, 403)
        else:
            response = await go_on(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(NotImplementedError)
    async def not_written(_: Request, error: Exception) -> Response:
        return tell("Not written yet", f"approval.py: {error}", 501)

    @app.exception_handler(404)
    async def not_there(_: Request, error: Exception) -> Response:
        return tell("Not here", "There is no such page.", 404)

    @app.get("/style.css")
    def style() -> FileResponse:
        return FileResponse(HERE / "style.css", media_type="text/css")

    @app.get("/")
    def cases() -> Response:
        desk.expire()
        decided = [e for e in desk.trail.entries() if e.decision is not None]
        return show("cases.html", waiting=desk.pending(), decided=decided[::-1])

    @app.get("/cases/{approval_id}")
    def case(approval_id: str) -> Response:
        desk.expire()
        if not there(approval_id):
            return tell("Not here", "There is no such case.", 404)
        return show_case(approval_id)

    @app.post("/cases/{approval_id}")
    async def decide(approval_id: str, request: Request) -> Response:
        form = {k: v for k, v in (await request.form()).items() if isinstance(v, str)}
        if not same(form.get("form", ""), guard.form):
            return tell("Not let in", "The form was not sent by this page.", 403)
        return await run_in_threadpool(decided, approval_id, form)

    def decided(approval_id: str, form: Mapping[str, str]) -> Response:
        if not there(approval_id):
            return tell("Not here", "There is no such case.", 404)
        approval = desk.trail.find(approval_id).approval
        edited = form.get("verdict") == "edited"
        typed = typed_arguments(world.tool(approval.tool), approval.arguments, form)
        note = form.get("note", "")
        if form.get("verdict") == "approved" and typed != approval.arguments:
            changed = [name for name in typed if typed[name] != approval.arguments[name]]
            told = "You changed this. Approve with the changes, or put back what was asked for."
            return show_case(approval_id, 422, dict.fromkeys(changed, told), typed=typed, note=note)
        try:
            desk.decide(
                approval_id,
                reviewer=reviewer,
                verdict=form.get("verdict", ""),
                shown=form.get("shown", ""),
                arguments=typed if edited else None,
                note=note,
            )
        except module.InvalidEdit as error:
            return show_case(approval_id, 422, error.problems, typed=typed, note=note)
        except module.NotAllowed as error:
            return tell("Not decided", f"You may not decide about this: {error}.", 403)
        except module.NotShown:
            return tell("Not decided", "This case is not what your page showed. Look again.", 409)
        except ValueError as error:
            return tell("Not decided", f"{error}.", 400)
        # Not the answer itself: reloading it would post again.
        return RedirectResponse(f"/cases/{approval_id}", 303)

    return app


@dataclass(frozen=True)
class Field:
    """One argument as a form shows it.

    Attributes:
        kind: ``"number"``, ``"text"``, or ``"fixed"``: no edit may change it.
    """

    name: str
    kind: str
    help: str


def editable(spec: ToolSpec, arguments: Mapping[str, Any], fixed: tuple[str, ...]) -> list[Field]:
    """The arguments of a call, as fields of a form."""
    described = spec.arguments.model_json_schema()["properties"]
    found = []
    for name in arguments:
        about = described.get(name, {})
        kind = "number" if about.get("type") == "integer" else "text"
        found.append(Field(name, "fixed" if name in fixed else kind, about.get("description", "")))
    return found


def typed_arguments(
    spec: ToolSpec, asked: Mapping[str, Any], form: Mapping[str, str]
) -> dict[str, Any]:
    """The arguments with what was typed in place of what was asked for.

    A form holds texts only: where the tool takes a whole number, a text that is one becomes one.
    Everything else stays as typed, for `check_edit` to refuse.
    """
    described = spec.arguments.model_json_schema()["properties"]
    typed = dict(asked)
    for name in asked:
        text = form.get(f"argument-{name}")
        if text is None:
            continue
        whole = described.get(name, {}).get("type") == "integer"
        number = whole and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text)
        typed[name] = int(text) if number else text
    return typed


def duration(seconds: float) -> str:
    """Seconds in the words of a clock on the wall, e.g. ``"58 min"``."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"

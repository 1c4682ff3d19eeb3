"""A labelling page on 127.0.0.1: one image at a time, answered by a key. Needs werkzeug (the extra `label`).

It is reached by an address with a token in it alone, under this machine's own name, and shows what is asked for alone.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from pathlib import Path
from string import Template
from typing import Any

from mal.data.decode import Reading, picture
from mal.labels.session import Session, alone

HOST = "127.0.0.1"
SIDE = 1024  # pixels of the longer side of an image on the page
PAGE = Path(__file__).with_name("page.html")
MOST_BYTES = 10_000  # of an answer


class Application:
    """Answers the page's requests: /TOKEN/ and, below it, state, image/INDEX, answer, undo and take."""

    def __init__(self, session: Session, token: str) -> None:
        from werkzeug.routing import Map, Rule

        self.session, self.token = session, token
        self.routes = Map(
            [
                Rule("/<token>/", endpoint="page", methods=["GET"]),
                Rule("/<token>/state", endpoint="state", methods=["GET"]),
                Rule("/<token>/image/<int:index>", endpoint="image", methods=["GET"]),
                Rule("/<token>/answer", endpoint="answer", methods=["POST"]),
                Rule("/<token>/undo", endpoint="undo", methods=["POST"]),
                Rule("/<token>/take", endpoint="take", methods=["POST"]),
            ]
        )

    def __call__(self, environment: Any, start: Any) -> Any:
        """The WSGI interface."""
        from werkzeug.exceptions import HTTPException, NotFound, SecurityError
        from werkzeug.wrappers import Request

        request = Request(environment)
        request.max_content_length = MOST_BYTES
        request.trusted_hosts = [HOST, "localhost"]
        try:
            if not request.host:  # raises for another name, by which a foreign page may reach this machine
                raise SecurityError("no Host")
            endpoint, values = self.routes.bind_to_environ(environment).match()
            if not secrets.compare_digest(str(values["token"]).encode(), self.token.encode()):
                raise NotFound
            below = {key: value for key, value in values.items() if key != "token"}
            response = getattr(self, f"_{endpoint}")(request, **below)
        except HTTPException as error:
            response = error.get_response(environment)
        response.headers.extend(
            {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
        )
        return response(environment, start)

    def _page(self, request: Any) -> Any:
        nonce = secrets.token_urlsafe(16)
        response = self._respond(Template(PAGE.read_text()).substitute(nonce=nonce), "text/html")
        policy = f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'nonce-{nonce}'; "
        response.headers["Content-Security-Policy"] = policy + f"style-src 'nonce-{nonce}'; frame-ancestors 'none'"
        return response

    def _state(self, request: Any) -> Any:
        if self.session.current is None:
            self.session.refresh()  # a round may have asked for more
        return self._told()

    def _image(self, request: Any, index: int) -> Any:
        from werkzeug.exceptions import NotFound

        session = self.session
        if index not in session.asked.paths:
            raise NotFound
        content = (session.images / session.asked.paths[index]).read_bytes()
        how = Reading(SIDE, "stretch", session.exif, session.max_pixels)
        return self._respond(picture(content, how), "image/png")

    def _answer(self, request: Any) -> Any:
        from werkzeug.exceptions import BadRequest

        given = request.get_json()
        if not isinstance(given, dict) or not isinstance(given.get("index"), int):
            raise BadRequest("an answer is an index and a label")
        try:
            self.session.answer(given["index"], str(given.get("label")))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return self._told()

    def _undo(self, request: Any) -> Any:
        self.session.undo()
        return self._told()

    def _take(self, request: Any) -> Any:
        from werkzeug.exceptions import BadRequest

        try:
            self.session.take()
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return self._told()

    def _told(self) -> Any:
        session, index = self.session, self.session.current
        state = {
            "classes": session.names,
            "index": index,
            "path": None if index is None else session.asked.paths[index],
            "given": len(session.answers),
            "asked": len(session.asked.open),
            "last": next(reversed(session.answers.values()), None),
        }
        return self._respond(json.dumps(state), "application/json")

    @staticmethod
    def _respond(body: str | bytes, kind: str) -> Any:
        from werkzeug.wrappers import Response

        return Response(body, mimetype=kind)


def serve(sweep: Path, port: int) -> None:
    """Serve the page until Ctrl-C. ValueError where werkzeug is not there, or the port is taken."""
    try:
        from werkzeug.serving import WSGIRequestHandler, make_server
    except ImportError:
        raise ValueError("serve=true needs werkzeug: pip install werkzeug, or the extra `label`.") from None

    class Silent(WSGIRequestHandler):
        """Writes no line per request."""

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            """Nothing."""

    session, token = Session(sweep), secrets.token_urlsafe(24)
    with alone(sweep), contextlib.suppress(KeyboardInterrupt):
        try:
            server = make_server(HOST, port, Application(session, token), threaded=True, request_handler=Silent)
        except (OSError, SystemExit) as error:
            raise ValueError(f"port={port} cannot be used ({error}): leave it out for a free one.") from None
        print(
            f"Label at  http://{HOST}:{server.port}/{token}/    (Ctrl-C ends it; what was answered is kept)", flush=True
        )
        server.serve_forever()

"""A Spark master that is nothing but its page."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class PageMaster:
    """Serves a page and counts who asks; in a thread of this process, which is not the one that is measured.

    Args:
        page: makes the document of `/json/`.
    """

    def __init__(self, page: Callable[[], dict[str, Any]]) -> None:
        self.requests = 0
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                master.requests += 1
                body = json.dumps(page()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def connection(self) -> str:
        """An Airflow connection to it, as JSON."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return json.dumps({"conn_type": "spark", "host": "spark://m", "port": 7077, "extra": {"ui-url": url}})

    def __enter__(self) -> PageMaster:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

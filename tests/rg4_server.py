"""A chat server with scripted answers on 127.0.0.1, in the place of vLLM's."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIE = "die"  # the server closes its door, and this connection without an answer


class Server:
    """`url` for --endpoint; `asked`: the messages of each request so far.

    `answer` maps the messages and how often exactly these were asked before to the text of the completion, to a status
    code, to a float (seconds of silence, then no answer), to a dict (sent as it is) or to DIE.
    """

    def __init__(self, answer: Callable):
        self.answer, self.asked, self.lock, asks = answer, [], threading.Lock(), Counter()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                messages = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))["messages"]
                key = json.dumps(messages)
                with self.lock:
                    times = asks[key]
                    asks[key] += 1
                    self.asked.append(messages)
                self._reply(handler, self.answer(messages, times))

            def log_message(handler, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def _reply(self, handler, reply) -> None:
        if reply == DIE:
            threading.Thread(target=self.close, daemon=True).start()
            handler.close_connection = True
            return
        if isinstance(reply, float):
            time.sleep(reply)
            handler.close_connection = True
            return
        code = reply if isinstance(reply, int) else 200
        body = reply if isinstance(reply, dict) else {"choices": [{"message": {"content": reply}}]}
        text = json.dumps(body if code == 200 else {"error": "scripted"}).encode()
        handler.send_response(code)
        if code in (301, 307):
            handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def close(self) -> None:
        """Ends the server; a second call does nothing."""
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serve(answer: Callable) -> Iterator[Server]:
    """A server for the length of the block."""
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()

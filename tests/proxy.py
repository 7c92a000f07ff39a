"""A reverse proxy that adds headers and passes everything else on as it is, streams too: for suites that send no credentials."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy:
    """Forwards to `port` with `headers` added. Use it as a context."""

    def __init__(self, port, headers, path=None):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", port)
                upstream.putrequest(self.command, path or self.path, skip_host=True, skip_accept_encoding=True)
                kept = [(name, value) for name, value in self.headers.items() if name.lower() not in ("connection", "content-length")]
                for name, value in [*kept, *headers.items(), ("Content-Length", str(len(body))), ("Connection", "close")]:
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                try:
                    answer = upstream.getresponse()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                            self.send_header(name, value)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.close_connection = True
                    while chunk := answer.read1(65536):
                        self.wfile.write(chunk)
                        self.wfile.flush()
                except (OSError, ValueError, http.client.HTTPException):
                    pass  # One of both left.
                finally:
                    upstream.close()

            do_GET = do_POST = do_DELETE = do_PUT = do_OPTIONS = forward

        ThreadingHTTPServer.daemon_threads = True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

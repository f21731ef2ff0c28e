#!/usr/bin/env bash
# fsspec 2026.9.0 (with aiohttp 3.14.5): a web server that is overloaded for a moment reads as a missing file.
#
# One URL on a server of this script answers 200, then 503 ("try again later"), then 403, then 404. Seen:
#
#   status  info()             exists()  isfile()  cat_file()
#   200     size 5             True      True      5 bytes
#   503     FileNotFoundError  False     False     ClientResponseError, status 503
#   403     FileNotFoundError  False     False     ClientResponseError, status 403
#   404     FileNotFoundError  False     False     FileNotFoundError
#
# Expected: FileNotFoundError and False where the server says that there is no such file (404, 410), as cat_file has it,
# and an error that can be told from that where it says something else. A program that asks exists() or info() before it
# reads (pyarrow's FSSpecHandler asks isfile() in open_input_stream) takes an outage for a deletion. The status is still
# there as the exception's __cause__ where info() is called directly.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check fsspec==2026.9.0 aiohttp==3.14.5
cat > "$work/try.py" <<'PYTHON'
import http.server
import sys
import threading

import fsspec

STATUS = 200


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"video" if STATUS == 200 else b""
        self.send_response(STATUS)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def outcome(question, url):
    try:
        answer = question(url)
    except Exception as error:
        status = getattr(error, "status", None)
        return type(error).__name__ + (f" {status}" if status else "")
    return answer["size"] if isinstance(answer, dict) else answer


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/clip.mp4"
system = fsspec.filesystem("http")
seen = {}
for STATUS in (200, 503, 403, 404):
    seen[STATUS] = [outcome(ask, url) for ask in (system.info, system.exists, system.isfile, system.cat_file)]
    print(STATUS, *seen[STATUS])
missing = ["FileNotFoundError", False, False]
expected = {
    200: [5, True, True, b"video"],
    503: [*missing, "ClientResponseError 503"],
    403: [*missing, "ClientResponseError 403"],
    404: [*missing, "FileNotFoundError"],
}
sys.exit(seen != expected)
PYTHON
"$work/venv/bin/python" "$work/try.py" && echo "as described: 503 and 403 read as a missing file"

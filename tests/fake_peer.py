"""A peer that speaks the driver's protocol and has, or is, what a real one may: named by the folder of its Python."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

mode = (Path(sys.argv[0]).parent / "mode").read_text().strip()
if mode == "dies at start":
    sys.exit("ImportError: no module named 'engine'")


class Handler(BaseHTTPRequestHandler):
    """OpenAI's interface: as many words as were asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "fake"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == "fake"
        self.send_response(200)
        self.end_headers()
        usage = {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}
        for event in (*[{"choices": [{"text": " word"}]}] * asked["max_tokens"], usage):
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        pass


if mode == "serves":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"ready": "fake server 1.0", "url": f"http://127.0.0.1:{server.server_port}"}), flush=True)
    sys.stdin.read()
    sys.exit()
print("garbage" if mode == "says garbage" else json.dumps({"ready": "fake 1.0"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    count = len(asked["prompts"])
    if mode == "dies later" and count > 1:
        sys.exit("MemoryError: two prompts are too many")
    if mode == "fails":
        reply = {"error": f"ValueError: {count} prompts"}
    else:
        reply = {"decode_tokens_per_s": 10.0 * count, "prefill_tokens_per_s": 100.0}
    if mode == "hangs":
        worker = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(worker, start_new_session=True)  # vLLM's ranks are processes too
        time.sleep(600)
    print(json.dumps(reply), flush=True)

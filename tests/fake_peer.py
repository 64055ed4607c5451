"""A peer that speaks the driver's protocol and has, or is, what a real one may: named by the folder of its Python."""

import json
import subprocess
import sys
import time
from pathlib import Path

mode = (Path(sys.argv[0]).parent / "mode").read_text().strip()
if mode == "dies at start":
    sys.exit("ImportError: no module named 'engine'")
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

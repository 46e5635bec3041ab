"""A worker for tools/fuzz_files.py: cases 3, 5 and 6 end it, hang it, find something."""

import json
import os
import sys
import time


def main(folder, seed, first, last, pipe):
    def say(row):
        os.write(int(pipe), json.dumps(row).encode() + b"\n")

    say({"ready": True})
    for number in range(int(first), int(last)):
        if number == 3:
            print("x.c:7: GGML_ASSERT(all is well) failed", file=sys.stderr, flush=True)
            os.abort()
        if number == 5:
            time.sleep(60)
        row = {"n": number, "kind": "toy", "came": "taken"}
        say(row | ({"finding": "class", "what": "TypeError"} if number == 6 else {}))


if __name__ == "__main__":
    main(*sys.argv[1:])

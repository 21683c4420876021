"""A gcloud that records how it was called and answers from a script; see `Cloud` in conftest.py.

It stands on PATH as `gcloud`, in the folder named by FAKE_GCLOUD: `answers.json` is what to say,
`calls.jsonl` what was asked.
"""

import fcntl
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

FOLDER = pathlib.Path(os.environ["FAKE_GCLOUD"])


def choose(line):
    """The first answer that fits and has not been used up."""
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = json.loads((FOLDER / "answers.json").read_text())
        for answer in answers:
            if re.search(answer["match"], line) and answer["times"] != 0:
                answer["times"] -= 1
                (FOLDER / "answers.json").write_text(json.dumps(answers))
                return answer
    return {"err": f"fake gcloud: no answer for {line}", "exit": 99}


def main():
    argv = sys.argv[1:]
    line = shlex.join(argv)
    answer = choose(line)
    stdin = "" if answer.get("run") or sys.stdin.isatty() else sys.stdin.read()
    call = json.dumps({"argv": argv, "stdin": stdin})
    with (FOLDER / "calls.jsonl").open("a") as calls:
        calls.write(call + "\n")
    if answer.get("sleep"):
        time.sleep(answer["sleep"])
    if answer.get("run"):
        flags = dict(word.split("=", 1) for word in argv if word.startswith("--") and "=" in word)
        environment = dict(os.environ)
        if "FAKE_WORKERS" in environment:  # each is this machine under a root of its own
            root = environment["FAKE_WORKERS"] + "/" + flags["--worker"]
            environment["WAN_TPU_ROOT"] = root
        sys.exit(subprocess.call(("bash", "-c", flags["--command"]), env=environment))
    print(answer.get("out", ""), end="", flush=True)
    if not answer.get("exit") and not answer.get("silent"):
        # What worker.sh and the sending of files say in the end.
        if "bash -s -- " in line:
            print("wan-tpu-worker: done", file=sys.stderr)
        elif "echo wan-tpu: sent" in line:
            print("wan-tpu: sent")
    print(answer.get("err", ""), end="", file=sys.stderr)
    sys.exit(answer.get("exit", 0))


main()

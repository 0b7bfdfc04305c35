"""What a worker does with its events, without the models: the beginning of a program that a test goes on with."""

# The same line to events.jsonl and to the pipe. `run` is the run directory.
PRELUDE = """
import json, os, signal, subprocess, sys, time
run = sys.argv[1]
def emit(event, **fields):
    line = json.dumps({"event": event, "time": time.time(), **fields})
    with open(run + "/events.jsonl", "a") as log: log.write(line + "\\n")
    try: print(line, flush=True)
    except BrokenPipeError: pass
def step(number, steps=9):
    emit("step", step=number, steps=steps, loss=0.5, smoothed_loss=0.5, lr=0.1, directional_derivative=0.1,
         seconds=0.1, tokens=8, steps_per_second=10.0, tokens_per_second=80.0, eta_seconds=1.0,
         active_bytes=1000000, peak_bytes=2000000, cache_bytes=0)
def finish(): emit("finished", result={"ok": True})
def fail(title="Data", code=4):
    emit("failed", title=title, message="by design", fix="", details=[], exit_code=code)
    sys.exit(code)
"""

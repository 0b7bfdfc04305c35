"""Stands for a command that `tests/warm_workers.py` forks: `warm_client.py -m mlxzo ARGUMENTS`, by few imports."""

import json
import os
import signal
import socket
import sys


def main() -> int:
    """Has the command run on this process's streams, passes signals on to it, and ends as it ends."""
    words = sys.argv[sys.argv.index("-m") + 1 :]
    job = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ["MLXZO_WARM_SOCKET"])
        socket.send_fds(connection, [json.dumps(job).encode()], [0, 1, 2])
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, frame: connection.send(str(number).encode()))
        code = int(connection.recv(16) or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())

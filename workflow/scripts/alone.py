"""Run a command while no other works in a folder, as one does that a killed workflow left behind.

alone.py FOLDER COMMAND...
"""

import fcntl
import os
import sys
from pathlib import Path

folder, *command = sys.argv[1:]
lock = Path(folder).parent / f".{Path(folder).name}.lock"
lock.parent.mkdir(parents=True, exist_ok=True)
handle = os.open(lock, os.O_RDWR | os.O_CREAT)
os.set_inheritable(handle, True)  # the command holds the lock until it ends, however it does
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"{folder}: another command is at work there: waiting for it to end", file=sys.stderr, flush=True)
    fcntl.flock(handle, fcntl.LOCK_EX)
os.execvp(command[0], command)

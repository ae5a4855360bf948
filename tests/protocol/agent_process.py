"""An agent for tests: started as its machine starts it, on loopback, waited for by its ready line, always ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from emucsd.isp.client import Isp

TOKEN = "open sesame"
START_SECONDS = 60.0


class AgentProcess:
    """``python -m emucsd_agent`` with a token, on a port of its own choice."""

    def __init__(self, folder: Path, *words: str) -> None:
        folder.mkdir(exist_ok=True)
        self.work = folder / "work"
        self.log_path = folder / "log"
        (folder / "token").write_text(TOKEN + "\n")
        self._argv = [
            *(sys.executable, "-m", "emucsd_agent", "--listen", "127.0.0.1:0", "--work", str(self.work)),
            *("--token-file", str(folder / "token"), *words),
        ]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        ready, theirs = os.pipe()
        with open(self.log_path, "ab") as output:
            process = subprocess.Popen(
                [*self._argv, "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        os.close(theirs)
        with open(ready, "rb", buffering=0) as file:
            assert select.select([file], [], [], START_SECONDS)[0], self.log()
            said: dict[str, Any] = json.loads(file.readline() or b'{"ok": false}')
        if not said["ok"]:
            process.wait()
            raise AssertionError(f"{said}\n{self.log()}")
        self.port = int(said["listen"][0].rpartition(":")[2])
        return process

    def client(self, token: str = TOKEN) -> Isp:
        """Its client."""
        return Isp("127.0.0.1", port=self.port, token=token)

    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Again, after its end; on another port."""
        self.process = self._start()

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

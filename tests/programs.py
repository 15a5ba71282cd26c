"""The programs of scripts/ in the tests' process."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest


def script(name):
    """Imports a program as a module."""
    scripts = Path(__file__).parents[1] / "scripts"
    spec = importlib.util.spec_from_file_location(name, scripts / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(scripts))  # the program's other half lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(scripts))
    return module


def heed_interrupts():
    """For a process to begin with: in the background of a shell SIGINT is ignored, which processes inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Inline:
    """Stands for multiprocessing's context: processes run when they are started."""

    def Process(self, target, args):
        class Process:
            exitcode = 0

            def start(self):
                with pytest.raises(SystemExit) as stopped:
                    target(*args)
                self.exitcode = stopped.value.code

            def is_alive(self):
                return False

            def join(self, timeout=None):
                pass

            def terminate(self):
                pass

        return Process()

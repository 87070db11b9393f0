"""The command line: one dataclass and one function a command, one line each in `entry.COMMANDS`.

Heavy imports happen in the commands.
"""

from fastrl.cli.entry import main

__all__ = ["main"]

"""`fastrl COMMAND …`: the table of commands, and exit statuses for what they raise."""

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Sequence

from fastrl.cli.init import init_command
from fastrl.cli.judging import audit_command, verify_command
from fastrl.cli.measuring import compare_command, eval_command, ledger_command
from fastrl.cli.planning import doctor_command, plan_command, settings_command, tasks_command
from fastrl.cli.quiet import is_main_rank, without_torchao_noise
from fastrl.cli.sharing import push_command
from fastrl.cli.training import train_command, warmup_command
from fastrl.cli.watching import watch_command
from fastrl.config.annotations import nearest
from fastrl.process.interrupts import Interrupts
from fastrl.run.divergence import DivergedError
from fastrl.sampling.protocol import SamplerError
from fastrl.tasks.verifier.pool import VerifierError

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "init": init_command,
    "train": train_command,
    "watch": watch_command,
    "warmup": warmup_command,
    "eval": eval_command,
    "compare": compare_command,
    "ledger": ledger_command,
    "verify": verify_command,
    "audit": audit_command,
    "plan": plan_command,
    "tasks": tasks_command,
    "push": push_command,
    "settings": settings_command,
    "doctor": doctor_command,
}


def overview() -> str:
    """One line a command: the first of its function's docstring."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {inspect.getdoc(run).partition(chr(10))[0]}" for name, run in COMMANDS.items()]
    return "\n".join(["usage: fastrl COMMAND …", "", *lines, "", "fastrl COMMAND --help says what each one takes."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 with one message for bad input; 130 after a signal; 1 for a broken verifier or sampler and for
    gradients that are not finite any more (and `watchdog` ends a hung process with 1)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(importlib.metadata.version("fastrl"))
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"error: there is no command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    without_torchao_noise()
    try:
        with Interrupts():
            COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (VerifierError, SamplerError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if is_main_rank():
            print("stopped; continue with --resume" if arguments[0] == "train" else "stopped", file=sys.stderr)
        return 130
    return 0

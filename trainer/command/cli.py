"""The `lockstep` command: it runs a verb, and turns its errors into messages and exit codes."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from trainer._console import conceal, shown
from trainer._redaction import escaped, secrets_in
from trainer.command.parser import parsed
from trainer.command.signals import ending_signals

__all__ = ["main"]

_USAGE_ERROR, _FAILURE = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments without the program name. None: those of the process.

    Returns:
        The exit code: 0 on success, 1 after a failure, 2 if the command line or a configuration is invalid, 128 plus
        the signal number if a signal ended the command.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a line may have characters that a terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    conceal(())  # what an earlier call has set
    options = parsed(arguments)
    conceal(secrets_in(vars(options)))
    before = {number: signal.signal(number, _terminate) for number in ending_signals()}
    try:
        return _run(options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace) -> int:
    from workers.errors import AgentError, ConfigError, EnvError, LockstepError, ScopeError

    try:
        for line in options.verb(options):
            print(escaped(line), flush=True)  # a name or number of ours may equal a secret
    except (ConfigError, ScopeError, EnvError, AgentError) as error:
        return _failed(error, _USAGE_ERROR)
    except (LockstepError, OSError) as error:
        return _failed(error, _FAILURE)
    except Exception:  # a fault of ours
        return _failed(traceback.format_exc(), _FAILURE)
    except KeyboardInterrupt:
        return _failed("interrupted", 128 + signal.SIGINT)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else _failed(end.code, _FAILURE)
    return 0


def _failed(error: object, code: int) -> int:
    text = shown(getattr(error, "report", None) or str(error))
    for line in text.splitlines():
        print(f"lockstep: {line}", file=sys.stderr, flush=True)
    return code


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)

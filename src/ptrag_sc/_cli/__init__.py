"""What does ``ptrag-sc`` do on the command line? It understands the arguments and runs one command.

Nothing that takes seconds to import is imported before the arguments are understood: this file, ``_parser``,
``_options`` and ``_shell`` need the standard library only.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from ptrag_sc._cli._parser import make_parser
from ptrag_sc._cli._shell import check_inputs, hush, output, shell_message

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (arguments that cannot be understood exit with 2)."""
    options = make_parser().parse_args(arguments)
    try:
        check_inputs(options)
        with output(options):
            command = import_module(f"ptrag_sc._cli.{options.module}")
            hush()
            getattr(command, options.command)(options)
    except KeyboardInterrupt:
        sys.stderr.write("ptrag-sc: interrupted; existing results were left as they were\n")
        return 130
    except Exception as error:
        if options.traceback:
            raise
        sys.stderr.write(f"ptrag-sc: {shell_message(error, options)}\n")
        return 1
    return 0

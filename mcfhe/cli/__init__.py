"""The ``mcfhe`` command. Exit code 0: done; 1: refused or failed, with one line that says why; 2: wrong usage."""

from __future__ import annotations

import os
import sys
import traceback
import warnings

import click

from mcfhe import __version__
from mcfhe.cli import (
    audit_command,
    bench_command,
    client_commands,
    common,
    demo_command,
    info_command,
    program_commands,
    server_commands,
    service_commands,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mcfhe")
def app() -> None:
    """Classify images with a CNN on encrypted data, exactly.

    The modular scheme is an obfuscation without semantic security: read SECURITY.md first.
    """


for command in (
    demo_command.demo,
    program_commands.train,
    program_commands.compile_,
    client_commands.keygen,
    client_commands.public_key,
    client_commands.encrypt,
    server_commands.evaluate,
    client_commands.decrypt,
    client_commands.refresh,
    service_commands.serve,
    service_commands.classify,
    audit_command.audit,
    bench_command.bench,
    info_command.info,
):
    app.add_command(command)


def main() -> None:
    """Entry point: maps every refusal to one line on standard error and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code and lets no exception through."""
    json_wanted = "--json" in arguments
    # Deprecations inside torch say nothing to who runs a command; the Python interface leaves them alone.
    warnings.filterwarnings("ignore", module=r"(torch|copyreg)\b")
    try:
        # A command's context.exit(code) comes back as a number; one that simply ends returns None.
        return int(app.main(args=arguments, prog_name="mcfhe", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        help_wanted.show()
        return 2
    except click.UsageError as error:
        if error.ctx is not None:
            print(error.ctx.get_usage(), file=sys.stderr)
        common.report_error(error.format_message(), json_wanted)
        return 2
    except click.Abort:
        common.report_error("interrupted", json_wanted)
        return 1
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is left to say, and the interpreter must not try to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if common.is_refusal(error):
            common.report_error(str(error), json_wanted)
        else:
            if os.environ.get("MCFHE_TRACEBACK"):
                traceback.print_exc()
            common.report_error(
                f"internal error, please report it ({type(error).__name__}: {error}); MCFHE_TRACEBACK=1 shows where",
                json_wanted,
            )
        return 1

"""The `onecard` command: its subcommands, each with `add_arguments` and `run`.

Only argparse is imported to answer `--help`; a command's own file imports what it needs when it runs. This
package is the server's composition root: `serve`, `plan` and `collect-env` reach into `onecard.engines`,
inside functions, and nothing else in the gateway does.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from onecard.gateway import VERSION
from onecard.gateway.cli import chat, collect_env, ps, registry_commands, serve
from onecard.gateway.cli.command import Command, CommandError
from onecard.registry.spec import RegistryError

COMMANDS: dict[str, Command] = {
    "serve": serve.COMMAND,
    "check": registry_commands.CHECK,
    "plan": registry_commands.PLAN,
    "pull": registry_commands.PULL,
    "list": registry_commands.LIST,
    "ps": ps.COMMAND,
    "chat": chat.COMMAND,
    "collect-env": collect_env.COMMAND,
}
"""What the user types -> what does it."""

EPILOG = """\
a first session:
  onecard check configs/demo.yaml     is the registry right?
  onecard plan  configs/demo.yaml     who gets which part of the card?
  onecard serve configs/demo.yaml     fetch, load and serve it
  onecard ps                          (in another terminal) what runs
  onecard chat                        talk to a model

`onecard COMMAND --help` says more about each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 can't be done (stderr says why), 2 wrong usage."""
    args = build_parser().parse_args(argv)
    command: Command = args.command
    try:
        code = command.run(args)
        sys.stdout.flush()  # a full disk behind it is found here, not by the interpreter's last breath
        return code
    except (CommandError, RegistryError) as error:
        print(f"onecard {args.command_name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `onecard list | head`: nobody reads on
        _silence_stdout()
        return 1
    except OSError as error:
        from onecard.gateway.cli.startup import DEBUG_VARIABLE, explain

        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"onecard {args.command_name}: {explain(error)}", file=sys.stderr)
        _silence_stdout()
        return 1


def _silence_stdout() -> None:
    """What is still buffered can't be written: it must not fail once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onecard",
        description="One endpoint that serves many models from one card.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onecard {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(command=command, command_name=name)
    return parser

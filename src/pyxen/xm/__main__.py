"""The entry point of ``xm``: what happens to errors, and the exit status.

0    done
1    xend or the guest said no, or is not there
2    the call itself is wrong
3    no such domain
130  interrupted by Ctrl-C
"""

from __future__ import annotations

import os
import sys

import click

from pyxen.errors import PyxenError
from pyxen.xm.cli import UnknownCommand, cli
from pyxen.xm.session import Session

FAILED, WRONG_CALL, UNKNOWN_DOMAIN, INTERRUPTED = 1, 2, 3, 130


def tool() -> None:
    """The same for a sub-command that is installed under a name of its own: ``xenstore-ls``."""
    main([os.path.basename(sys.argv[0]), *sys.argv[1:]])  # noqa: PTH119  pathlib would be an import for one word


def main(args: list[str] | None = None) -> None:
    """Run xm with the process's arguments and end the process."""
    status = run(sys.argv[1:] if args is None else args, Session())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever read has seen enough, or there is no room for what it was to say
            status = status or FAILED
    # Taking the interpreter apart would be a tenth of a short command's whole time.
    os._exit(status)


def run(args: list[str], session: Session) -> int:
    """Run one command; returns the exit status. Errors are on the standard error."""
    try:
        result = cli.main(args, prog_name="xm", standalone_mode=False, obj=session)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except click.UsageError as error:
        _report_usage(error)
        return WRONG_CALL
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        return FAILED
    except PyxenError as error:
        return _report(error, session)
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        return _report_bug(error, session)
    finally:
        session.close()
    return result if isinstance(result, int) else 0


def _report(error: PyxenError, session: Session) -> int:
    from pyxen.client import DomainNotFound

    if session.debug:
        _traceback()
    unknown = isinstance(error, DomainNotFound)
    click.echo(f"Error: {error}{'.' if unknown else ''}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)
    return UNKNOWN_DOMAIN if unknown else FAILED


def _report_usage(error: click.UsageError) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    click.echo(f"Error: {error.format_message()}", err=True)
    if isinstance(error, UnknownCommand):
        click.echo(error.hint, err=True)
    elif error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Help: {error.ctx.command_path} --help", err=True)


def _report_bug(error: Exception, session: Session) -> int:
    if session.debug:
        _traceback()
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    click.echo(f"Error: internal error: {words}", err=True)
    if not session.debug:
        click.echo("Run it again with --debug to see where: xm --debug …", err=True)
    return FAILED


def _traceback() -> None:
    import traceback

    traceback.print_exc()


if __name__ == "__main__":
    main()

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import click

from pyxen.abi import hypercall
from pyxen.api import TRACE_KINDS, TraceRecord
from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import coloured, echo_json, echo_lines
from pyxen.xm.session import Session
from pyxen.xm.traces import HEADER, Summary, label, line, painter

_EXAMPLES = [
    "xm debug-trace web",
    "xm debug-trace web --only sched_op --only xenstore.write",
    "xm debug-trace web --summary --count 10000",
    "xm debug-trace web --format json | head",
]


@subcommand("debug-trace", examples=_EXAMPLES)
@domain_argument()
@click.option(
    "-o",
    "--only",
    "words",
    multiple=True,
    metavar="KIND",
    help=f"Only this: {', '.join(TRACE_KINDS)}; or a hypercall, or one operation of it. May be repeated.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after so many.")
@click.option("-s", "--summary", "summarise", is_flag=True, help="Show only what took how long, at the end.")
@format_option
@pass_session
def command(
    session: Session, domain: str, words: tuple[str, ...], count: int | None, summarise: bool, form: str
) -> None:
    """Show what a domain asks of its hypervisor, as it happens.

    Each hypercall with its arguments by name, what Xen wrote in answer (after ->) and what the guest got (after =);
    each other exit to the hypervisor; events raised for the guest, its timers, and its requests to xenstore. Time
    counts from the start of the trace; Cost is how long the guest was kept waiting for it. A line comes when that is
    over, so what happened meanwhile comes before it. Until Ctrl-C or the
    domain's end; after Ctrl-C a summary follows. The domain runs on, a little slower. If it does more than can be
    shown, the oldest is left out, and how many.

    Only domains of pyxen's own hypervisor (engine=xen) can be traced.
    """
    kinds = {_kind(word) for word in words}
    summary = Summary()
    interrupted = False
    records = _wanted(session.client.trace(domain, sorted(kinds)), words, count)
    try:
        if form == "table" and not summarise:
            click.echo(HEADER)
        for record in records:
            summary.add(record)
            if not summarise:
                _show(record, form)
            if record.kind == "end" and form == "table":
                click.echo(f"Domain {domain} has ended ({record.name})", err=True)
    except KeyboardInterrupt:
        interrupted = True
    if summarise and form == "json":
        echo_json({"costs": [asdict(cost) for cost in summary.costs()], "lost": summary.lost})
    elif summarise:
        echo_lines(summary.lines())
    elif interrupted and form == "table":
        click.echo("\n" + "\n".join(summary.lines()), err=True)


def _show(record: TraceRecord, form: str) -> None:
    if form == "json":
        import msgspec

        click.echo(msgspec.json.encode(record))
    elif record.kind != "end":
        click.echo(line(record, painter(coloured())))


def _kind(word: str) -> str:
    """The kind of records that ``word`` asks for."""
    first = word.partition(".")[0]
    if first in TRACE_KINDS:
        return first
    known = {name.lower() for name in vars(hypercall) if name.isupper()}
    if first in known or first.startswith("hypercall_"):
        return "hypercall"
    raise click.UsageError(f"--only {word}: there is no such kind and no such hypercall.", click.get_current_context())


def _wanted(records: Iterator[TraceRecord], words: tuple[str, ...], count: int | None) -> Iterator[TraceRecord]:
    """Those that ``words`` name, up to ``count`` of them."""
    seen = 0
    for record in records:
        if record.kind in ("lost", "end"):
            yield record
            continue
        names = {record.kind, record.name if record.kind == "hypercall" else "", label(record)}
        if words and names.isdisjoint(words):
            continue
        yield record
        seen += 1
        if seen == count:
            return

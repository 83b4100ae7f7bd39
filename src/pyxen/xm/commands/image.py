from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import CONTEXT, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@click.group("image", context_settings=CONTEXT)
def command() -> None:
    """List, build and remove images to boot.

    An image is a kernel with what it needs to come up: a ramdisk or a root disk. A domain's description names it:
    image = "tiny".
    """


@subcommand("list", examples=["xm image list"])
@format_option
@pass_session
def list_images(session: Session, form: str) -> None:
    """Show the images, and which can be built."""
    found = session.client.images()
    if form == "json":
        echo_json(found)
        return
    echo_lines(tables.images(found.images))
    there = {each.name for each in found.images}
    if missing := [name for name in found.buildable if name not in there]:
        click.echo(f"Not built yet: {', '.join(missing)} (xm image build NAME)")


@subcommand("build", examples=["xm image build tiny", "xm image build debian -o password=secret --force"])
@click.argument("name")
@click.option("-f", "--force", is_flag=True, help="Build it again though it is there.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="A setting of this image.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all goes well.")
@pass_session
def build(session: Session, name: str, force: bool, options: tuple[str, ...], quiet: bool) -> None:
    """Build an image."""
    from pyxen.xm.progress import show

    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise click.UsageError(f"-o {option}: it should be KEY=VALUE.", click.get_current_context())
        settings[key] = value
    last = show(session.client.build_image(name, force=force, options=settings), quiet=quiet)
    if last is not None and (image := last.image) is not None and not quiet:
        click.echo(f"Built image {image.name} ({image.size_bytes / 2**20:.1f} MiB, kernel {image.kernel_release})")


@subcommand("rm", examples=["xm image rm tiny"])
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def remove(session: Session, names: tuple[str, ...]) -> None:
    """Remove images that no domain uses."""
    for name in names:
        session.client.remove_image(name)


for _each in (list_images, build, remove):
    command.add_command(_each)

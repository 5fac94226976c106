"""The commands of ``anoscan models``, which manage the store without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli.options import Force, Json, option

Name = Annotated[str, typer.Argument(metavar="NAME", help="Model in the store.")]


def help_without_command(context: typer.Context) -> None:
    """Print help and exit with code 2 when no subcommand was named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def list_models(as_json: Json = False) -> None:
    """List the models in the store."""
    from anoscan.cli.output import Output
    from anoscan.core.results import ModelsReport
    from anoscan.model import store

    Output(as_json=as_json).emit(ModelsReport(models=tuple(store.models())))


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Name or path of a model. [default: the one trained last]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print all that a model file says of the model."""
    from anoscan.cli.output import Output
    from anoscan.model import file as model_file
    from anoscan.model import store

    path = store.resolve(model)
    head = {"schema": "anoscan.model/1", "name": path.stem, "path": str(path)}
    Output(as_json=as_json).model(head | model_file.read_metadata(path))


def remove(name: Name) -> None:
    """Delete a model."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    store.remove(name)
    Output().note(f"removed {name}")


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Name now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name then.")],
    force: Force = False,
) -> None:
    """Rename a model."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    store.rename(old, new, force=force)
    Output().note(f"renamed {old} to {new}")


def export(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="File or folder to copy it to.")
    ],
    force: Force = False,
) -> None:
    """Copy a model out of the store, as one file."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    Output().text(str(store.export(name, destination, force=force)))


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file.")],
    name: Annotated[
        str | None,
        option(help="Keep the model under this name.", metavar="NAME", default="the file's"),
    ] = None,
    force: Force = False,
) -> None:
    """Copy a model file into the store."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    Output().note(f"imported {store.import_model(file, name=name, force=force)}")

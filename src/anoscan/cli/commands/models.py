"""The commands of ``anoscan models``, which manage the store without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anoscan.cli import completion
from anoscan.cli.asking import Yes, ask_before, taken_back
from anoscan.cli.options import DEFAULT_MODEL, Force, Json, option
from anoscan.core.errors import UsageError

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Model in the store.", autocompletion=completion.models),
]
Known = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Model, which may be removed; or path of a file.",
        autocompletion=completion.known_models,
    ),
]


def help_without_command(context: typer.Context) -> None:
    """Print help and exit with code 2 when no subcommand was named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def list_models(as_json: Json = False) -> None:
    """List the models in the store, and which are kept for restore."""
    from anoscan.cli.output import Output
    from anoscan.core.results import ModelsReport
    from anoscan.model import listing, store

    models, removed = tuple(listing.models()), tuple(listing.removed())
    report = ModelsReport(models=models, removed=removed, pinned=store.pinned())
    Output(as_json=as_json).emit(report)


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"Name or path of a model. [default: {DEFAULT_MODEL}]",
            autocompletion=completion.models,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print all that a model file says of the model."""
    from anoscan.cli.output import Output
    from anoscan.model import file as model_file
    from anoscan.model import store

    path, called = store.to_read(model)
    head = {"schema": "anoscan.model/1", "name": path.stem, "path": called}
    Output(as_json=as_json).model(head | model_file.read_metadata(path))


def use(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Model in the store to pin.", autocompletion=completion.models
        ),
    ] = None,
    none: Annotated[
        bool, option("--none", help="Pin no model: the one trained last is the default again.")
    ] = False,
) -> None:
    """Pin the default: the model that commands use without --model.

    Example: anoscan models use bolts
    """
    from anoscan.cli.output import Output
    from anoscan.model import store

    if none == (name is not None):
        raise UsageError("models use needs NAME, or --none.")
    store.pin(name)
    said = f"the default is now {name}" if name else "the default is now the model trained last"
    Output().note(said)


def history(name: Known, as_json: Json = False) -> None:
    """Say what was done to a model when, and which versions of it are kept.

    Example: anoscan models history bolts
    """
    from anoscan.cli.output import Output
    from anoscan.model import listing

    Output(as_json=as_json).emit(listing.history_of(name))


def restore(
    name: Known,
    forward: Annotated[
        bool, option("--forward", help="Take back the last restore instead.")
    ] = False,
) -> None:
    """Take back the last change of a model; repeat it to go back further.

    Changes are calibrate, retrain, remove, train --redo, and all that replaces it by --force.

    Example: anoscan models restore bolts
    """
    from anoscan.cli.output import Output
    from anoscan.model import listing, store

    version = store.restore(name, forward=forward)
    when = f"{version.action} of {version.at:%Y-%m-%d %H:%M} UTC"
    left = [kept for kept in listing.history_of(name).kept if kept.undone == forward]
    way = "can be restored again" if forward else "older versions are kept"
    Output().note(
        f"restored {name}, as it was {'after' if forward else 'before'} {when}; {len(left)} {way}"
    )


def remove(
    name: Name,
    purge: Annotated[
        bool, option("--purge", help="Delete it for good, with its kept versions and history.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Take a model out of the store; models restore brings it back."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    path, output = store.path_for(name), Output()
    after = "Nothing brings it back." if purge else taken_back(path)
    ask_before(f"This removes the model {name}. {after}", path, yes)
    was_pinned = store.pinned() == path.stem
    store.remove(name, purge=purge)
    output.note(f"removed {name}" + f"; anoscan models restore {name} brings it back" * (not purge))
    if was_pinned:
        output.note("it was the pinned default; the model trained last is the default now")


def rename(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="Name now.", autocompletion=completion.models)
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name then.")],
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Rename a model."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    target = store.path_for(new)
    if force:
        ask_before(f"This replaces the model {new}. {taken_back(target)}", target, yes)
    store.rename(old, new, force=force)
    Output().note(f"renamed {old} to {new}")


def export(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="File or folder to copy it to.")
    ],
    with_history: Annotated[
        bool, option("--history", help="Also copy its history, which names folders.")
    ] = False,
    force: Force = False,
) -> None:
    """Copy a model out of the store, as one file."""
    from anoscan.cli.output import Output
    from anoscan.model import store

    target = store.export(name, destination, with_history=with_history, force=force)
    Output().text(str(target))


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file.")],
    name: Annotated[
        str | None,
        option(help="Keep the model under this name.", metavar="NAME", default="the file's"),
    ] = None,
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Copy a model file into the store, with its history where that is beside it."""
    from anoscan.cli.output import Output
    from anoscan.model import names, store

    target = store.path_for(names.made_of(file.name) if name is None else name)
    if force:
        ask_before(f"This replaces the model {target.stem}. {taken_back(target)}", target, yes)
    Output().note(f"imported {store.import_model(file, name=name, force=force)}")

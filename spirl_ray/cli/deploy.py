"""The commands that carry trained artifacts elsewhere: ``spirl export``, ``spirl publish`` and ``spirl serve``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from spirl_ray.cli.arguments import readable_errors
from spirl_ray.cli.terminal import console, print_next, shown

PolicyFolder = Annotated[
    Path, typer.Argument(help="The folder of a policy, such as runs/NAME/policy/FOLDER.", show_default=False)
]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the program."""
    app.command()(export)
    app.command()(publish)
    app.command()(serve)


def export(
    folder: PolicyFolder,
    onnx: Annotated[Path, typer.Option("--onnx", help="The folder to write; a new one.", show_default=False)],
) -> None:
    """Writes a policy and its skill decoder as ONNX graphs, which NumPy and onnxruntime run.

    export.json beside them says H, the features, the limits and the normalisation.
    """
    with readable_errors():
        from spirl_ray.policy.export import export_policy

        card = export_policy(folder, onnx)
        console.print(f"[green]exported[/green]  {escape(shown(onnx))}: {card.policy.file}, {card.decoder.file}")
        print_next(["python", "examples/onnx_maze.py", shown(onnx)], "shows how to act with it")


def publish(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a policy or of skills in an experiment.", show_default=False)
    ],
    place: Annotated[str, typer.Argument(help="Where to: hf://ORG/NAME, or hf://ORG/NAME@BRANCH.", show_default=False)],
    licence: Annotated[
        str | None,
        typer.Option(help="The licence, such as apache-2.0; that of the dataset if not given.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card, and send nothing.")] = False,
) -> None:
    """Publishes a policy or skills on the Hugging Face hub, with a card made from the report's values.

    spirl_ray.load_policy and load_skills read them from there. HF_TOKEN or `hf auth login` says who you are.
    """
    with readable_errors(stopped="Nothing has been published."):
        from spirl_ray.files.hub import HubPlace, upload
        from spirl_ray.reports.model_card import CARD, published_files

        where = HubPlace.parse(place)
        files = published_files(folder, str(where), licence)
        if dry_run:
            console.print(files[CARD].decode(), markup=False)
            return
        address = upload(where, files, private=private, message=f"Publish {folder.name} with spirl-ray")
        console.print(f"[green]published[/green]  {escape(str(where))}: {', '.join(files)}")
        console.print(f"      {escape(address)}")


def serve(
    folder: Annotated[
        str, typer.Argument(help="The folder of a policy, or hf://ORG/NAME.", show_default=False, metavar="FOLDER")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    sampled: Annotated[bool, typer.Option("--sampled", help="Draw skills instead of the most likely ones.")] = False,
    batch: Annotated[int, typer.Option(help="The most observations in one pass through the networks.", min=1)] = 64,
    sessions: Annotated[int, typer.Option(help="The most sessions at the same time.", min=1)] = 1000,
) -> None:
    """Answers observations over HTTP with Ray Serve until Ctrl-C: batched, one running skill for each session.

    POST /act with {"session": NAME, "observation": {FEATURE: numbers}} answers {"action": …}; GET / says what an
    observation holds. Whoever reaches the port can ask: there is no login.
    """
    with readable_errors(stopped="The policy is no longer served."):
        from spirl_ray.cluster.serving import ServingSettings, serving
        from spirl_ray.files.hub import SCHEME

        place = folder if folder.startswith(SCHEME) else str(Path(folder).absolute())
        settings = ServingSettings(
            place, host=host, port=port, deterministic=not sampled, batch=batch, sessions=sessions
        )
        with serving(settings) as address:
            console.print(f"[green]serving[/green]  {escape(folder)} at {address}  (Ctrl-C ends it)")
            if host not in ("127.0.0.1", "localhost", "::1"):
                console.print("[yellow]There is no login:[/yellow] whoever reaches this port can ask the policy.")
            threading.Event().wait()

"""``lorica push``: a result for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.display.console import Console


def push(
    result: Annotated[
        Path, typer.Argument(help="The adapter/ folder of a finished run, or an export.")
    ],
    target: Annotated[
        str,
        typer.Argument(help="hub:OWNER/NAME, a Hugging Face repository; else a new folder."),
    ],
    public: Annotated[
        bool, typer.Option(help="Make the repository for everybody; private otherwise.")
    ] = False,
    without_privacy: Annotated[
        bool,
        typer.Option(
            "--without-privacy",
            help="Let a model go that was trained without differential privacy: whoever has it "
            "may learn its records.",
        ),
    ] = False,
) -> None:
    """Give an adapter or an export away: model card, weights and settings, and no other file."""
    from lorica.common.saved.push import push_to_folder, push_to_hub

    console = Console()
    if target.startswith("hub:"):
        with console.status("uploading"):
            done = push_to_hub(
                result,
                target.removeprefix("hub:"),
                public=public,
                without_privacy=without_privacy,
            )
    else:
        if public:
            raise typer.BadParameter("--public goes with hub:OWNER/NAME.")
        done = push_to_folder(result, Path(target), without_privacy=without_privacy)
    console.print(Text(f"Pushed to {done.target}: {', '.join(done.files)}."), soft_wrap=True)
    if done.left:
        console.print(Text(f"Not pushed: {', '.join(done.left)}."), soft_wrap=True)

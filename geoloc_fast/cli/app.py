"""The command `geoloc-fast`. The other modules of this room add their commands to it."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Where was this photo taken, and which way was the camera looking?",
)


city_app = typer.Typer(help="Make synthetic cities for training, tests and demonstrations without data.")
app.add_typer(city_app, name="city")


index_app = typer.Typer(help="Build and maintain an index: places and their strips.")
app.add_typer(index_app, name="index")


cluster_app = typer.Typer(help="Manage a Ray cluster that builds and searches indexes too large for one machine.")
app.add_typer(cluster_app, name="cluster")

"""Commands that locate photos: locate, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from geoloc_fast.cli.app import app
from geoloc_fast.cli.options import (
    BoxOption,
    JsonOption,
    ModelOption,
    NearOption,
    confidence_of,
    model_at,
    region_of,
)
from geoloc_fast.cli.output import progress, say


@app.command()
def locate(
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos.")] = None,
    index: Annotated[Path, typer.Option(help="Folder of the index to search.")] = Path("index"),
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    fov_deg: Annotated[
        float | None, typer.Option(help="Horizontal field of view; default what the photo says, else assumed.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, max=64, help="At most this many a photo.")] = 5,
    least_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help='Below it the answer is "unknown".')
    ] = None,
    output: Annotated[str, typer.Option("--format", help="table, json, jsonl or geojson.")] = "table",
    as_json: JsonOption = False,
    folder: Annotated[Path | None, typer.Option("--photos", help="All photos below this folder; needs --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file for --photos; a run goes on with it.")] = None,
) -> None:
    """Where were these photos taken, which way did they look, and how sure is that?

    Example: geoloc-fast locate photo.jpg --index region.index --near lat=48.137,lon=11.575,metres=5000
    """
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate import answers
    from geoloc_fast.locate.locator import Locator

    output = "json" if as_json else output
    if output not in answers.FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(answers.FORMATS)}, got {output}")
    if bool(photos) == (folder is not None):
        raise typer.BadParameter("give photos, or a folder of them with --photos")
    if (folder is None) != (out is None):
        raise typer.BadParameter("--photos and --out belong together")
    region = region_of(box, near)
    opened, network = PlaceIndex.open(index), model_at(model)
    opened.check_model(network.fingerprint)
    confidence = confidence_of(model, network)
    locator = Locator(opened, network, confidence=confidence, within=region, least_probability=least_probability)
    if folder is not None and out is not None:
        with progress("photos") as shown:
            counts = answers.locate_folder(locator, folder, out, fov_deg=fov_deg, candidates=candidates, progress=shown)
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        say({**counts, "path": str(out)}, f"{said}; written to {out}", as_json)
        raise typer.Exit(1 if counts["unreadable"] else 0)
    found = []
    if output == "table":
        typer.echo(answers.TABLE_HEAD)
    for answer in locator.locate(photos or [], fov_deg=fov_deg, candidates=candidates):
        found.append(answer)
        if output == "table":
            typer.echo(answers.as_line(answer))
        elif output == "jsonl":
            typer.echo(json.dumps(answers.as_dict(answer)))
    if output == "json":
        typer.echo(json.dumps([answers.as_dict(answer) for answer in found], indent=1))
    elif output == "geojson":
        typer.echo(answers.geojson(found))
    raise typer.Exit(1 if any(answer.status == "unreadable" for answer in found) else 0)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write predictions.geojson, metrics.json, report.html to.")
    ] = Path("demo"),
    places: Annotated[int, typer.Option(min=2, max=20_000, help="Places in the city.")] = 400,
    photos: Annotated[int, typer.Option(min=1, max=20_000, help="Photos to locate.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which city. The shipped model was trained on others.")] = 20_000,
    model: Annotated[Path | None, typer.Option(help="A model bundle; default the small one that ships.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Make an unseen synthetic city, index it, and locate photos of unknown heading.

    Example: geoloc-fast demo --out demo --places 400 --photos 200
    """
    from geoloc_fast.demo import default_model, run_demo, summary

    metrics = run_demo(out, model_path=model or default_model(), places=places, photos=photos, seed=seed)
    typer.echo(json.dumps(metrics, indent=1) if as_json else summary(metrics))
    if not as_json:
        typer.echo(f"Written to {out}: predictions.geojson, metrics.json, report.html")

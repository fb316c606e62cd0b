"""Commands that say how good an index is, and how sure: evaluate, fit-confidence."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from geoloc_fast.cli.app import app
from geoloc_fast.cli.options import (
    BoxOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NearOption,
    SplitOption,
    UseFovOption,
    WithinOption,
    confidence_of,
    model_at,
    named,
    region_of,
)
from geoloc_fast.cli.output import progress, say


@app.command("evaluate")
def evaluate_photos(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions or places are known.")],
    index: Annotated[
        Path | None, typer.Option(help="Folder of the index to search; default one made of the manifest's places.")
    ] = None,
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    split: SplitOption = None,
    crop_fov: Annotated[
        list[float] | None,
        typer.Option(min=10, max=360, help="Of photos that go all the way round, a crop of these degrees; repeatable."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, max=360, help="Crops a photo, at seeded headings.")] = 1,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with map, figures and pictures; it opens with the network off.")
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """How often is the index right about photos of known position? Recall with intervals, headings, confidence, time.

    Photos are located twice: as if nobody knew their field of view, and, where the table has it, with it. Those that go
    all the way round are located whole, or as crops, with their field of view and as if nobody knew it:
    --crop-fov 180 --crop-fov 90. A photo without a position is right at its own place.

    Example: geoloc-fast evaluate region/ --index region.index --split test --report report.html
    """
    from geoloc_fast.evaluation.evaluate import evaluate_views, neighbours_for, summary, views_of
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.locator import Answer, Locator

    named(report, "--report", ".html")
    photos = _manifest(manifest)
    network, area = model_at(model, device), region_of(box, near, within)
    with ExitStack() as stack:
        if index is None:
            index = Path(stack.enter_context(TemporaryDirectory())) / "index"
            _index_of(photos, index, network)
        opened = PlaceIndex.open(index, device=device)
        ids = opened.keys()
        rows = _known_photos(photos, ids, split)
        locator = Locator(
            opened,
            network,
            confidence=confidence_of(model, network),
            within=area,
            neighbours=neighbours_for(len(opened)),
        )
        views = views_of(photos, rows, ids, network.query_input, crop_fov or [], turns)
        answers: list[Answer] = []
        with progress("photos") as shown:
            found = evaluate_views(locator, views, keep=None if report is None else answers, progress=shown)
        metrics = {title: result.metrics() for title, result in found.items()}
        if report is not None:
            from geoloc_fast.evaluation.report import ManifestPictures, write_report

            title, first = next(iter(views.items()))
            write_report(
                report,
                title="Where were these photos taken, and which way were they looking?",
                about=f"{len(first.rows)} photos of known position, located in the index {opened.path.name} with the "
                f"model {network.name} ({opened.model[:12]}); their headings were not told: {title}.",
                index=opened,
                within=area,
                names=[row["id"] for row in first.rows],
                lat=first.truth.lat,
                lon=first.truth.lon,
                heading_deg=first.truth.heading_deg,
                answers=answers,
                evaluations=found,
                pictures=ManifestPictures(
                    photos, [row["image"] for row in first.rows], {number: key for key, number in ids.items()}
                ),
            )
    said = [f"{title}: {summary(values)}" for title, values in metrics.items()]
    if report is not None:
        said.append(f"Written to {report}")
    say({views[title].key: values for title, values in metrics.items()}, "\n\n".join(said), as_json)


@app.command("fit-confidence")
def fit_confidence_of_model(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions or places are known.")],
    model: Annotated[Path, typer.Option(help="The model bundle; its confidence is written beside it.")],
    index: Annotated[Path, typer.Option(help="Folder of an index of that model.")] = Path("index"),
    split: SplitOption = None,
    use_fov: UseFovOption = False,
    precision: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the answers to be given.")] = 0.9,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Learn how sure a model of your own is, from some hundred photos of known position it was not trained on.

    Afterwards `locate` gives probabilities and says "unknown"; `evaluate`, on other photos, says how well they hold.

    Example: geoloc-fast fit-confidence region/ --model model.safetensors --index region.index --split val
    """
    from geoloc_fast.evaluation.evaluate import contents, fit_confidence, truth_of
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.confidence import Confidence

    photos = _manifest(manifest)
    opened, network = PlaceIndex.open(index, device=device), model_at(model, device)
    opened.check_model(network.fingerprint)
    known = _known_photos(photos, opened.keys(), split)
    confidence = fit_confidence(
        opened,
        network,
        lambda rows: contents(photos, [known[row] for row in rows]),
        truth_of(known, opened.keys()),
        fov_deg=[row["fov_deg"] for row in known] if use_fov else network.query_input.assumed_fov_deg,
        precision=precision,
    )
    path = Confidence.path_for(model)
    confidence.save(path)
    said = {"path": str(path), "photos": len(known), "threshold": confidence.threshold}
    never = 'no probability is high enough for that: every answer will be "unknown"'
    found = never if confidence.threshold >= 1 else f"answers are given from {100 * confidence.threshold:.0f} % on"
    say(said, f"{len(known)} photos, {100 * precision:g} % precision: {found}; written to {path}", as_json)


def _manifest(path: Path) -> Any:
    from geoloc_fast.data.manifest import Manifest

    found = Manifest.load(path)
    if "projection" in found.photos.column_names and "cylindrical" in found.photos["projection"].to_pylist():
        raise ValueError(f"{path}: its photos are prepared; take the manifest that they were made from")
    return found


def _known_photos(photos: Any, ids: Mapping[str, int], split: str | None) -> list[dict[str, Any]]:
    """Rows of photos whose position is known, or whose own place is in the index."""
    rows = [row for row in photos.photos.to_pylist() if split is None or row["split"] == split]
    known = [row for row in rows if row["lat"] is not None or row["place"] in ids]
    if len(known) < len(rows):
        typer.echo(
            f"geoloc-fast: {len(rows) - len(known)} photos have no position and no place in the index; "
            "they are left out",
            err=True,
        )
    if not known:
        raise ValueError(f"{photos.root}: there are no photos of known position or place")
    return known


def _index_of(photos: Any, path: Path, network: Any) -> None:
    from geoloc_fast.region.encode import build_index

    with progress("places") as shown:
        made = build_index(path, network, photos, progress=shown)
    for text in (*made.problems, *(f"{count} {note}" for note, count in made.notes.items())):
        typer.echo(f"geoloc-fast: {text}", err=True)

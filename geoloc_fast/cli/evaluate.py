"""Commands that measure answers and fit their probabilities: evaluate, fit-confidence."""

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
    ClusterOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NearOption,
    SplitOption,
    UseFovOption,
    WithinOption,
    confidence_of,
    index_at,
    model_at,
    named,
    region_of,
)
from geoloc_fast.cli.output import progress, say


@app.command("evaluate")
def evaluate_photos(
    command: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table, with known positions or places.")],
    index: Annotated[
        Path | None,
        typer.Option(help="Folder of the index to search; default: a temporary one of the manifest's places."),
    ] = None,
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    split: SplitOption = None,
    crop_fov: Annotated[
        list[float] | None,
        typer.Option(min=10, max=360, help="Crop 360-degree photos to this many degrees; may be repeated."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, max=360, help="Crops per photo, at different headings.")] = 1,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with map, figures and pictures; it opens offline.")
    ] = None,
    device: DeviceOption = "cpu",
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how often answers are right: recall with intervals, headings, confidence, time.

    Every photo is located as if nobody knew its field of view, and again with its own if the table has it. 360-degree
    panoramas are located whole, or as crops with --crop-fov 180 --crop-fov 90. For a photo without a position, the
    right answer is its own place.

    Example: geoloc-fast evaluate region/ --index region.index --split test --report report.html
    """
    from geoloc_fast.evaluation.evaluate import evaluate_views, neighbours_for, summary, views_of
    from geoloc_fast.locate.locator import Answer, Locator

    named(report, "--report", ".html")
    photos = _manifest(manifest)
    area = region_of(box, near, within)
    opened = None if index is None else index_at(command, index, device, cluster)
    network = model_at(model, device, of=opened)
    with ExitStack() as stack:
        if opened is None:
            index = Path(stack.enter_context(TemporaryDirectory())) / "index"
            _index_of(photos, index, network)
            opened = index_at(command, index, device)
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
            from geoloc_fast.evaluation.report import ManifestPictures
            from geoloc_fast.evaluation.report.page import write_report

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
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table, with known positions or places.")],
    model: Annotated[Path, typer.Option(help="A model bundle, or its name; the confidence is written beside it.")],
    index: Annotated[Path, typer.Option(help="Folder of an index of that model.")] = Path("index"),
    split: SplitOption = None,
    use_fov: UseFovOption = False,
    precision: Annotated[float, typer.Option(min=0.01, max=0.999, help="Share of answers that should be right.")] = 0.9,
    foreign: Annotated[
        list[Path] | None,
        typer.Option(help='Manifest with photos of other regions, to learn "unknown"; may be repeated.'),
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Fit the probabilities of a model's answers, on a few hundred photos that it was not trained on.

    The fit also uses queries that were not taken here: blank images, noise and screenshots, photos of other parts of
    the region, and --foreign photos. Afterwards `locate` gives probabilities and answers "unknown". Use `evaluate` on
    other photos to measure how reliable the probabilities are.

    Example: geoloc-fast fit-confidence region/ --model model.safetensors --index region.index --split val
    """
    from geoloc_fast.evaluation.elsewhere import blanks, fit, located, trials
    from geoloc_fast.evaluation.evaluate import truth_of
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.confidence import Confidence
    from geoloc_fast.models.contract import Photo, model_path

    photos = _manifest(manifest)
    opened = PlaceIndex.open(index, device=device)
    network = model_at(model, device, of=opened)
    opened.check_model(network.fingerprint)
    known = _known_photos(photos, opened.keys(), split)
    home, kept = _decoded(photos, known, network, use_fov)
    strangers = {kind: [Photo(image) for image in images] for kind, images in blanks(20).items()}
    for number, other in enumerate(foreign or []):
        theirs = _manifest(other)
        shown, _ = _decoded(theirs, theirs.photos.to_pylist(), network, use_fov)
        strangers[f"foreign {number + 1}"] = shown
    with progress("regions") as shown_bar:
        tried = trials(opened, network, home, truth_of(kept, opened.keys()), strangers, progress=shown_bar)
    confidence = fit(network, tried, layers=opened.filled, precision=precision)
    elsewhere = located(confidence, tried)
    path = Confidence.path_for(model_path(model))
    confidence.save(path)
    said = {
        "path": str(path),
        "photos": len(kept),
        "threshold": confidence.threshold,
        "least_places": confidence.least_places,
        "located_elsewhere": elsewhere,
    }
    threshold = f"a photo is located from a probability of {100 * confidence.threshold:.0f} % on"
    if confidence.threshold >= 1:
        threshold = 'no probability is high enough, so every answer will be "unknown"'
    worst = max((rate for rates in elsewhere.values() for rate in rates.values()), default=0.0)
    text = (
        f"fitted on {len(kept)} photos so that {100 * precision:g} % of answers are right: {threshold}; in regions of "
        f"{confidence.least_places} places or more, at most {100 * worst:.0f} % of queries from elsewhere are located"
    )
    say(said, f"{text}; written to {path}", as_json)


def _manifest(path: Path) -> Any:
    from geoloc_fast.data.manifest import Manifest

    found = Manifest.load(path)
    if "projection" in found.photos.column_names and "cylindrical" in found.photos["projection"].to_pylist():
        raise ValueError(f"{path}: its photos are prepared; use the manifest that they were made from")
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
        raise ValueError(f"{photos.root}: no photo has a known position or place")
    return known


def _index_of(photos: Any, path: Path, network: Any) -> None:
    from geoloc_fast.region.encode import build_index

    with progress("places") as shown:
        made = build_index(path, network, photos, progress=shown)
    for text in (*made.problems, *(f"{count} {note}" for note, count in made.notes.items())):
        typer.echo(f"geoloc-fast: {text}", err=True)


def _decoded(
    photos: Any, rows: list[dict[str, Any]], network: Any, use_fov: bool
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Photos of these rows as the model takes them, and the rows; unreadable ones are left out and reported."""
    from geoloc_fast.errors import ImageError
    from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG, pixels_across
    from geoloc_fast.images.decode import decode_image
    from geoloc_fast.models.contract import Photo

    found, kept, takes = [], [], network.query_input
    widest = max(takes.readings_deg)
    for row in rows:
        if (row["fov_deg"] or 0.0) > WIDEST_PHOTO_DEG:
            continue
        fov_deg = row["fov_deg"] if use_fov else None
        try:
            content = photos.open_image(row["image"])
            enough = (1, pixels_across(widest if fov_deg is None else fov_deg, takes.size[1]))
            found.append(Photo(decode_image(content, row["image"], at_least=enough), fov_deg))
        except ImageError as error:
            typer.echo(f"geoloc-fast: {error}", err=True)
            continue
        kept.append(row)
    if not found:
        raise ValueError(f"{photos.root}: no photo could be read; panoramas do not count as photos here")
    return found, kept

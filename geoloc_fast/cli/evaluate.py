"""Commands that say how good an index is, and how sure: evaluate, fit-confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc_fast.cli.app import app
from geoloc_fast.cli.options import (
    BoxOption,
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
from geoloc_fast.cli.output import bar, counted, say


@app.command("evaluate")
def evaluate_photos(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions are known.")],
    index: Annotated[Path, typer.Option(help="Folder of the index to search.")] = Path("index"),
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    split: SplitOption = None,
    crop_fov: Annotated[
        list[float] | None,
        typer.Option(
            min=10, max=360, help="Of photos that go all the way round, a cut of this many degrees; repeatable."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with map, figures and pictures; it opens with the network off.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How often is the index right about photos of known position? Recall with intervals, headings, confidence, time.

    Photos are located twice: as if nobody knew their field of view, and, where the table has it, with it. Those that go
    all the way round are located as they are, or cut, each somewhere, with their field of view and as if nobody knew
    it: --crop-fov 180 --crop-fov 90.

    Example: geoloc-fast evaluate region/ --index region.index --split test --report report.html
    """
    from geoloc_fast.evaluation.evaluate import Evaluation, evaluate, fov_label, neighbours_for, summary, views_of
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.locator import Answer, Locator

    named(report, "--report", ".html")
    photos, known = _known_photos(manifest, split)
    opened, network, area = PlaceIndex.open(index), model_at(model), region_of(box, near, within)
    locator = Locator(
        opened,
        network,
        confidence=confidence_of(model, network),
        within=area,
        neighbours=neighbours_for(len(opened)),
    )
    views = views_of(photos, known, network.config, crop_fov or [])
    found: dict[str, Evaluation] = {}
    answers: list[Answer] = []
    with bar(sum(len(way.rows) for way in views.values()), "photos") as shown:
        for title, way in views.items():
            found[title] = evaluate(
                locator,
                counted(way.images(), shown),
                **way.truth,
                fov_deg=way.fov_deg,
                groups={
                    "city": [row["city"] or "unknown" for row in way.rows],
                    "field of view": [fov_label(row["fov_deg"]) for row in way.rows],
                },
                keep=None if report is None or found else answers,
            )
    metrics = {title: result.metrics() for title, result in found.items()}
    if report is not None:
        from geoloc_fast.evaluation.report import ManifestPictures, write_report

        title, first = next(iter(views.items()))
        write_report(
            report,
            title="Where were these photos taken, and which way were they looking?",
            about=f"{len(first.rows)} photos of known position, located in the index {opened.path.name} with the model "
            f"{opened.model[:12]}; their headings were not told: {title}.",
            index=opened,
            within=area,
            names=[row["id"] for row in first.rows],
            **first.truth,
            answers=answers,
            evaluations=found,
            pictures=ManifestPictures(
                photos, [row["image"] for row in first.rows], {number: key for key, number in opened.keys().items()}
            ),
        )
    said = [f"{title}: {summary(values)}" for title, values in metrics.items()]
    if report is not None:
        said.append(f"Written to {report}")
    say({title.replace(" ", "_"): values for title, values in metrics.items()}, "\n\n".join(said), as_json)


@app.command("fit-confidence")
def fit_confidence_of_model(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions are known.")],
    model: Annotated[Path, typer.Option(help="The model bundle; its confidence is written beside it.")],
    index: Annotated[Path, typer.Option(help="Folder of an index of that model.")] = Path("index"),
    split: SplitOption = None,
    use_fov: UseFovOption = False,
    precision: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the answers to be given.")] = 0.9,
    as_json: JsonOption = False,
) -> None:
    """Learn how sure a model of your own is, from some hundred photos of known position it was not trained on.

    Afterwards `locate` gives probabilities and says "unknown"; `evaluate`, on other photos, says how well they hold.

    Example: geoloc-fast fit-confidence region/ --model model.safetensors --index region.index --split val
    """
    import numpy as np

    from geoloc_fast.evaluation.evaluate import contents, fit_confidence
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.confidence import Confidence

    photos, known = _known_photos(manifest, split)
    opened, network = PlaceIndex.open(index), model_at(model)
    opened.check_model(network.fingerprint)
    with bar(None, "photos") as shown:
        confidence = fit_confidence(
            opened,
            network,
            lambda rows: counted(contents(photos, [known[row] for row in rows]), shown),
            lat=np.array([row["lat"] for row in known]),
            lon=np.array([row["lon"] for row in known]),
            fov_deg=[row["fov_deg"] for row in known] if use_fov else network.config.assumed_fov_deg,
            precision=precision,
        )
    path = Confidence.path_for(model)
    confidence.save(path)
    said = {"path": str(path), "photos": len(known), "threshold": confidence.threshold}
    never = 'no probability is high enough for that: every answer will be "unknown"'
    found = never if confidence.threshold >= 1 else f"answers are given from {100 * confidence.threshold:.0f} % on"
    say(said, f"{len(known)} photos, {100 * precision:g} % precision: {found}; written to {path}", as_json)


def _known_photos(manifest: Path, split: str | None) -> tuple[Any, list[dict[str, Any]]]:
    """The manifest, and the rows of its photos whose position is known."""
    from geoloc_fast.data.manifest import Manifest

    photos = Manifest.load(manifest)
    rows = [row for row in photos.photos.to_pylist() if split is None or row["split"] == split]
    if any(row.get("projection") == "cylindrical" for row in rows):
        raise ValueError(f"{manifest}: its photos are prepared; take the manifest that they were made from")
    known = [row for row in rows if row["lat"] is not None]
    if len(known) < len(rows):
        typer.echo(f"geoloc-fast: {len(rows) - len(known)} photos have no position and are left out", err=True)
    if not known:
        raise ValueError(f"{manifest}: there are no photos of known position")
    return photos, known

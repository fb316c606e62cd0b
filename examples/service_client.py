"""A client of the service, with the standard library alone.

    geoloc-fast serve --index demo/index &
    python examples/service_client.py http://127.0.0.1:8000 photo.jpg

Prints where the photo may have been taken. GEOLOC_FAST_TOKEN is sent along if it is set.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any


def locate(service: str, photo: Path, **fields: str) -> dict[str, Any]:
    """The service's answer: GeoJSON, with the whole answer in its member `answer`."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    # The photo's own name stays here.
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="photo"; filename="photo"\r\n\r\n'
    parts += [head.encode(), photo.read_bytes(), f"\r\n--{boundary}--\r\n".encode()]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if token := os.environ.get("GEOLOC_FAST_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{service}/v1/locate", b"".join(parts), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {json.load(error)['detail']}") from None


def main() -> None:
    """Locates the photo named on the command line and prints its candidates."""
    service, photo = sys.argv[1], Path(sys.argv[2])
    answer = locate(service, photo, candidates="3")["answer"]
    print(answer["status"])
    for rank, found in enumerate(answer["candidates"], start=1):
        heading = "unknown" if found["heading_deg"] is None else f"{found['heading_deg']:.0f}"
        sure = "" if found["probability"] is None else f"{found['probability']:.1%}"
        print(f"{rank}  {found['lat']:.6f} {found['lon']:.6f}  heading {heading}  {sure}")


if __name__ == "__main__":
    main()

// The map: the index's own imagery, what it covers, candidates as numbered fans, and drawing where to search.
import { cut } from "./service.js";

const L = window.L;
const FAN_M = 45;
const SPOT_M = 300;
const METRES = 111_195.08;

const moved = (lat, lon, east, north) => [lat + north / METRES, lon + east / (METRES * Math.cos(lat * Math.PI / 180))];
const away = (a, b) => Math.hypot((b[0] - a[0]) * METRES, (b[1] - a[1]) * METRES * Math.cos(a[0] * Math.PI / 180));

const Tiles = L.GridLayer.extend({
  createTile({ x, y, z }, done) {
    const image = document.createElement("img");
    image.alt = "";
    image.hidden = true; // what has no source is drawn with a frame
    cut.image(`/tiles/${z}/${x}/${y}`).then((source) => {
      if (source) { image.src = source; image.hidden = false; }
      done(null, image);
    }, () => done(null, image));
    return image;
  },
});

export class Ground {
  constructor(element, { choose, drawn }) {
    this.choose = choose;
    this.drawn = drawn;
    this.map = L.map(element, { zoomSnap: 0.5, maxZoom: 22, attributionControl: false, zoomAnimation: false, fadeAnimation: false });
    this.map.setView([0, 0], 2);
    L.control.scale({ imperial: false }).addTo(this.map);
    this.fans = L.layerGroup().addTo(this.map);
    this.shape = L.layerGroup().addTo(this.map);
    this.shaded = L.layerGroup().addTo(this.map);
    this.map.createPane("cover").style.zIndex = 300;
    this.tiles = null;
    this.rects = [];
    this.kind = null;
    this.points = [];
    this.map.on("click", ({ latlng }) => this.point([latlng.lat, latlng.lng]));
    this.map.on("mousemove", ({ latlng }) => { if (this.kind && this.points.length) this.sketch([...this.points, [latlng.lat, latlng.lng]]); });
    this.map.on("dblclick", () => { if (this.kind === "polygon") this.finish(); });
  }

  cover(index, tiles) {
    const shapes = index.coverage.coordinates.map(([ring]) => ring.map(([lon, lat]) => [lat, lon]));
    this.rects = shapes.map((ring) => [ring[0], ring[2]]);
    const { south, west, north, east } = index.bounds;
    if (south !== null) this.map.fitBounds([[south, west], [north, east]], { animate: false, padding: [10, 10] });
    if (tiles && !this.tiles) {
      this.tiles = new Tiles({ minZoom: tiles.min_zoom, maxNativeZoom: tiles.max_zoom, maxZoom: 22 }).addTo(this.map);
    }
    this.shaded.clearLayers();
    for (const ring of shapes) {
      L.polygon(ring, { pane: "cover", stroke: false, fillColor: "#4a90c2", fillOpacity: tiles ? 0.08 : 0.22, interactive: false }).addTo(this.shaded);
    }
  }

  draw(candidates, { fov, radius, chosen, verdicts, move, spots }) {
    this.fans.clearLayers();
    for (const spot of spots) {
      L.circle([spot.lat, spot.lon], { radius: SPOT_M, color: "#ffd24d", weight: 1.5, dashArray: "2 6", fill: false, interactive: false }).addTo(this.fans);
    }
    candidates.map((one, n) => [one, n]).reverse().forEach(([one, n]) => {
      const on = n === chosen;
      if (one.heading_deg !== null) {
        const corners = [[one.lat, one.lon]];
        for (let step = 0; step <= 12; step++) {
          const angle = (one.heading_deg - fov / 2 + fov * step / 12) * Math.PI / 180;
          corners.push(moved(one.lat, one.lon, FAN_M * Math.sin(angle), FAN_M * Math.cos(angle)));
        }
        L.polygon(corners, { color: "#ffd24d", weight: on ? 3 : 1.5, fillColor: "#ffd24d", fillOpacity: on ? 0.45 : 0.2, interactive: false, className: "view" }).addTo(this.fans);
      }
      if (n === 0 && radius !== null) {
        L.circle([one.lat, one.lon], { radius, color: "#ffd24d", weight: 1.5, dashArray: "6 5", fill: false, interactive: false }).addTo(this.fans);
      }
      const verdict = verdicts.get(n + 1)?.verdict ?? "";
      const icon = L.divIcon({ className: `number${on ? " chosen" : ""}${verdict ? ` ${verdict}` : ""}`, html: String(n + 1), iconSize: [25, 25] });
      L.marker([one.lat, one.lon], { icon, keyboard: false, zIndexOffset: on ? 1000 : -n, alt: `candidate ${n + 1}` })
        .on("click", () => this.choose(n)).addTo(this.fans);
    });
    if (move && candidates.length) this.map.fitBounds([...candidates, ...spots].map((one) => [one.lat, one.lon]), { animate: false, padding: [70, 70], maxZoom: 18 });
  }

  look({ lat, lon }) {
    if (!this.map.getBounds().pad(-0.1).contains([lat, lon])) this.map.panTo([lat, lon], { animate: false });
  }

  // --- drawing ------------------------------------------------------------------------------------------------

  begin(kind) {
    this.clear();
    this.kind = kind;
    this.map.doubleClickZoom.disable();
    this.map.getContainer().style.cursor = "crosshair";
    return { box: "Click two corners.", circle: "Click the middle, then the rim.", polygon: "Click the corners; click the first one again, or twice, to end." }[kind];
  }

  stop() {
    this.kind = null;
    this.points = [];
    this.map.doubleClickZoom.enable();
    this.map.getContainer().style.cursor = "";
  }

  clear() {
    this.stop();
    this.shape.clearLayers();
  }

  point(at) {
    if (!this.kind) return;
    const first = this.points[0];
    if (this.kind === "polygon" && this.points.length >= 3 && this.map.latLngToContainerPoint(first).distanceTo(this.map.latLngToContainerPoint(at)) < 12) {
      this.finish();
      return;
    }
    this.points.push(at);
    this.sketch(this.points);
    if (this.kind !== "polygon" && this.points.length === 2) this.finish();
  }

  sketch(points) {
    this.shape.clearLayers();
    const style = { color: "#c2185b", weight: 2, fillOpacity: 0.06, interactive: false };
    if (points.length < 2) L.circleMarker(points[0], { ...style, radius: 4 }).addTo(this.shape);
    else if (this.kind === "box") L.rectangle(points, style).addTo(this.shape);
    else if (this.kind === "circle") L.circle(points[0], { ...style, radius: away(points[0], points[1]) }).addTo(this.shape);
    else L.polygon(points, style).addTo(this.shape);
  }

  finish() {
    const { kind, points } = this;
    if (kind === "polygon" && points.length < 3) return;
    this.sketch(points);
    this.stop();
    if (kind === "circle") this.drawn({ circle: { lat: points[0][0], lon: points[0][1], metres: Math.max(1, away(points[0], points[1])) } });
    else if (kind === "box") {
      const [lat, lon] = [0, 1].map((n) => points.map((point) => point[n]));
      this.drawn({ box: { south: Math.min(...lat), west: Math.min(...lon), north: Math.max(...lat), east: Math.max(...lon) } });
    } else {
      const ring = [...points, points[0]].map(([lat, lon]) => [lon, lat]);
      this.drawn({ type: "Polygon", coordinates: [ring] });
    }
  }

  circle(lat, lon, metres) {
    this.clear();
    L.circle([lat, lon], { radius: metres, color: "#c2185b", weight: 2, fillOpacity: 0.06, interactive: false }).addTo(this.shape);
    this.map.fitBounds(L.latLng(lat, lon).toBounds(2.4 * metres), { animate: false });
    return { circle: { lat, lon, metres } };
  }

  // Whether the index has anything near the region's box.
  covered(region) {
    let box;
    if (region.circle) {
      const { lat, lon, metres } = region.circle;
      box = [moved(lat, lon, -metres, -metres), moved(lat, lon, metres, metres)];
    } else if (region.box) box = [[region.box.south, region.box.west], [region.box.north, region.box.east]];
    else {
      const [lon, lat] = [0, 1].map((n) => region.coordinates[0].map((point) => point[n]));
      box = [[Math.min(...lat), Math.min(...lon)], [Math.max(...lat), Math.max(...lon)]];
    }
    return this.rects.some(([low, high]) => low[0] <= box[1][0] && high[0] >= box[0][0] && low[1] <= box[1][1] && high[1] >= box[0][1]);
  }
}

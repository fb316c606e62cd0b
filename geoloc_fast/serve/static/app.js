// The desk: photos in, candidates on the map, decisions kept in a case. Everything of others is text here, never markup.
import { ask, cut, form, problemOf } from "./service.js";
import { Ground } from "./map.js";

const $ = (id) => document.getElementById(id);
const state = { photos: [], at: -1, chosen: 0, region: null, about: null, index: null, caseId: "", sealed: false, turn: 0 };
let ground;

// --- the list of photos ---------------------------------------------------------------------------------------

class Photo {
  constructor(name, file) {
    Object.assign(this, { name, file, sha256: null, text: null, words: null, answer: null, problem: null, fov: null, roll: 0, decisions: new Map(), asked: 0, source: null });
  }
  get said() {
    if (this.problem) return "problem";
    return this.answer ? this.answer.status : "…";
  }
}

const photo = () => state.photos[state.at] ?? null;

const addFiles = async (files) => {
  const first = state.photos.length;
  for (const file of files) if (state.photos.length < 500) state.photos.push(new Photo(file.name, file));
  if (first === state.photos.length) return;
  drawPhotos();
  await show(first);
  for (const one of state.photos.slice(first)) if (!one.answer && !one.asked) await locate(one);
};

// A description is a question like a photo, of a model that takes one; a case keeps photos alone.
const addText = async (words) => {
  const one = Object.assign(new Photo(words, null), { text: words });
  state.photos.push(one);
  drawPhotos();
  await show(state.photos.length - 1);
  await locate(one);
};

const drawPhotos = () => {
  $("photos").replaceChildren(...state.photos.map((one, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(n === state.at));
    for (const text of [one.words ? `${one.name}, “${one.words}”` : one.name, one.said]) button.append(Object.assign(document.createElement("span"), { textContent: text }));
    button.addEventListener("click", () => show(n));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
};

const show = async (n) => {
  state.at = n;
  state.chosen = 0;
  const one = photo();
  drawPhotos();
  $("shown").hidden = one === null || one.text !== null;
  $("words-both").hidden = $("shown").hidden || !state.index.takes.includes("both");
  if (one === null) return;
  if (one.text !== null) { drawAnswer(true); return; }
  if (!one.bitmap) {
    try {
      if (!one.file) one.file = await cut.blob(`/v1/cases/${state.caseId}/photos/${one.sha256}`);
      one.bitmap = await createImageBitmap(one.file, { imageOrientation: "from-image" });
    } catch {
      one.bitmap = null; // TIFF: the service reads it, the browser may not
    }
  }
  if (photo() !== one) return;
  $("fov").value = String(one.fov ?? one.answer?.fov_deg ?? 90);
  $("roll").value = String(one.roll);
  drawPhoto();
  drawAnswer(true);
};

const drawPhoto = () => {
  const one = photo(), canvas = $("photo");
  $("fov-said").textContent = `${Math.round(Number($("fov").value))}°${one.fov === null ? ` (${one.answer?.fov_from ?? "assumed"})` : ""}`;
  $("roll-said").textContent = `${one.roll}°`;
  if (!one.bitmap) { canvas.hidden = true; return; }
  canvas.hidden = false;
  const wide = 720, high = Math.round(wide * one.bitmap.height / one.bitmap.width);
  [canvas.width, canvas.height] = [wide, high];
  const pen = canvas.getContext("2d");
  pen.translate(wide / 2, high / 2);
  pen.rotate(one.roll * Math.PI / 180);
  pen.drawImage(one.bitmap, -wide / 2, -high / 2, wide, high);
  $("taken").src = canvas.toDataURL("image/jpeg", 0.85);
  $("above").src = $("taken").src;
};

// --- asking ---------------------------------------------------------------------------------------------------

const locate = async (one) => {
  const turn = ++one.asked;
  const fields = { fov_deg: one.fov, roll_deg: one.roll, text: state.index.takes.includes("both") ? one.words : null, region: state.region && !state.index.cells ? JSON.stringify(state.region) : null, candidates: 9, index: state.index.index };
  if (one === photo()) $("status").textContent = "Looking…";
  try {
    let found;
    if (one.text !== null) {
      found = await ask("/v1/locate", { method: "POST", body: form({ ...fields, text: one.text, fov_deg: null, roll_deg: null }) });
    } else if (state.caseId && !state.sealed) {
      const given = one.sha256 ? { sha256: one.sha256 } : { photo: one.file };
      found = await ask(`/v1/cases/${state.caseId}/photos`, { method: "POST", body: form({ ...given, ...fields }) });
      one.sha256 = found.sha256;
      for (const rank of [...one.decisions.keys()]) if (rank > 0) one.decisions.delete(rank);
    } else {
      if (!one.file) return;
      found = await ask("/v1/locate", { method: "POST", body: form({ photo: one.file, ...fields }) });
    }
    if (turn !== one.asked) return; // a newer question is on its way
    one.answer = found.answer;
    one.source = found.source;
    one.problem = null;
  } catch (error) {
    if (turn !== one.asked) return;
    one.problem = problemOf(error);
  }
  drawPhotos();
  if (one === photo()) { if (one.text === null) drawPhoto(); drawAnswer(false); }
};

let waiting;
const soon = () => { clearTimeout(waiting); const one = photo(); waiting = setTimeout(() => locate(one), 180); };

// --- the answer -----------------------------------------------------------------------------------------------

const degrees = (value) => value === null ? "heading unknown" : `looking ${Math.round(value) % 360}°`;
const percent = (value) => value === null ? "" : value < 0.005 ? "< 1 %" : value > 0.995 ? "> 99 %" : `${Math.round(100 * value)} %`;

const drawAnswer = (move) => {
  const one = photo(), answer = one?.answer ?? null, status = $("status");
  status.className = "";
  if (one?.problem) { status.textContent = one.problem; status.className = "unreadable"; }
  else if (!answer) status.textContent = "Looking…";
  else if (answer.status === "unreadable") { status.textContent = `unreadable: ${answer.problem}`; status.className = "unreadable"; }
  else {
    status.textContent = answer.status === "located"
      ? `located: ${percent(answer.probability)}${answer.radius_m === null ? "" : `, 68 % within ${Math.round(answer.radius_m)} m`}`
      : answer.status === "unverified" ? "unverified: nothing says how sure this model is. The candidates are to be checked."
        : "unknown: not sure enough. These are the runners-up, to be checked like any answer.";
    status.className = answer.status;
  }
  const found = one?.problem ? [] : (answer?.candidates ?? []).filter((candidate) => candidate.lat !== null);
  state.chosen = Math.min(state.chosen, Math.max(0, found.length - 1));
  $("candidates").replaceChildren(...found.map((candidate, n) => {
    const button = document.createElement("button"), verdict = one.decisions.get(n + 1)?.verdict;
    button.type = "button";
    button.setAttribute("aria-pressed", String(n === state.chosen));
    const add = (tag, text) => button.append(Object.assign(document.createElement(tag), { textContent: text }));
    add("b", String(n + 1));
    add("span", `${candidate.lat.toFixed(5)}, ${candidate.lon.toFixed(5)}`);
    add("span", percent(candidate.probability));
    add("small", `${degrees(candidate.heading_deg)}, score ${candidate.score.toFixed(3)}${verdict ? `, ${verdict}ed` : ""}`);
    button.addEventListener("click", () => choose(n));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  const spots = one?.problem ? [] : answer?.spots ?? [];
  $("spots").hidden = !spots.length;
  $("spots").replaceChildren(...spots.map((spot) => Object.assign(document.createElement("li"), {
    textContent: `spot at ${spot.lat.toFixed(4)}, ${spot.lon.toFixed(4)}: ${percent(spot.probability)}, ${percent(spot.covered)} of it indexed`,
  })), ...(spots.length ? [Object.assign(document.createElement("li"), { textContent: `in a spot where nothing is indexed: ${percent(answer.not_covered)}; elsewhere: ${percent(answer.elsewhere)}` })] : []));
  ground.draw(found, { spots, fov: answer?.fov_deg ?? 90, radius: answer?.radius_m ?? null, chosen: state.chosen, verdicts: one?.decisions ?? new Map(), move });
  compare();
};

const choose = (n) => {
  const found = photo()?.answer?.candidates ?? [];
  if (n >= found.length) return;
  state.chosen = n;
  drawAnswer(false);
  ground.look(found[n]);
};

const compare = async () => {
  const one = photo(), answer = one?.answer, candidate = answer?.candidates?.[state.chosen], n = state.chosen;
  $("compare").hidden = !candidate;
  if (!candidate) return;
  $("compare-title").textContent = `Candidate ${n + 1}: ${candidate.lat.toFixed(6)}, ${candidate.lon.toFixed(6)}, ${degrees(candidate.heading_deg)}`;
  const kept = Boolean(state.caseId) && Boolean(one.sha256);
  for (const id of ["accept", "reject", "note"]) $(id).disabled = !kept || state.sealed;
  const decision = one.decisions.get(n + 1);
  if (document.activeElement !== $("note")) $("note").value = decision?.note ?? "";
  $("decided").textContent = !kept ? "Choose or make a case to keep decisions." : decision?.verdict ? `${decision.verdict}ed` : "";
  const from = state.about.indexes.find((index) => index.index === (candidate.index ?? one.source?.index ?? state.index.index));
  const has = from?.pictures && candidate.place >= 0;
  const base = `/v1/index/${encodeURIComponent(from?.index ?? "")}/places/${candidate.place}`;
  const view = `heading_deg=${(candidate.heading_deg ?? 0).toFixed(2)}&fov_deg=${Math.min(150, Math.max(10, answer.fov_deg ?? 90))}`;
  const street = has && candidate.heading_deg !== null ? await cut.image(`${base}/street?${view}`) : null;
  const above = has ? await cut.image(`${base}/satellite`) : null;
  if (photo() !== one || one.answer !== answer || state.chosen !== n) return;
  for (const [id, source] of [["street", street], ["under", street], ["satellite", above]]) if (source) $(id).src = source;
  $("street-view").hidden = $("over").hidden = !street;
  $("satellite-view").hidden = !above;
  $("taken").parentElement.hidden = one.text !== null;
  drawFan(candidate.heading_deg, answer.fov_deg ?? 90);
};

const drawFan = (heading, fov) => {
  const svg = $("fan");
  svg.replaceChildren();
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    svg.append(made);
  };
  if (heading !== null) {
    const end = (angle) => `${(50 + 42 * Math.sin(angle * Math.PI / 180)).toFixed(1)} ${(50 - 42 * Math.cos(angle * Math.PI / 180)).toFixed(1)}`;
    make("path", { d: `M50 50L${end(heading - fov / 2)}A42 42 0 0 1 ${end(heading + fov / 2)}Z` });
  }
  make("circle", { cx: 50, cy: 50, r: 3 });
};

const decide = async (verdict) => {
  const one = photo(), rank = state.chosen + 1;
  if (!state.caseId || state.sealed || !one?.sha256 || !one.answer?.candidates.length) return;
  const said = { rank, verdict: verdict ?? one.decisions.get(rank)?.verdict ?? null, note: $("note").value };
  try {
    await ask(`/v1/cases/${state.caseId}/photos/${one.sha256}/decisions`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(said) });
    one.decisions.set(rank, said);
    drawAnswer(false);
  } catch (error) { $("decided").textContent = problemOf(error); }
};

let flickering = null;
const flicker = () => {
  const on = flickering === null;
  $("flicker").setAttribute("aria-pressed", String(on));
  if (on) flickering = setInterval(() => { $("above").hidden = !$("above").hidden; }, 450);
  else { clearInterval(flickering); flickering = null; $("above").hidden = false; }
};
const swipe = () => { $("above").style.clipPath = `inset(0 ${100 - Number($("swipe").value)}% 0 0)`; };

// --- where to search ------------------------------------------------------------------------------------------

const setRegion = (region) => {
  state.region = region;
  for (const button of document.querySelectorAll("[data-draw]")) button.setAttribute("aria-pressed", "false");
  const outside = region !== null && !ground.covered(region);
  const all = state.index.cells ? "Looking for the best cells first, then for places of all indexes in them." : "Searching everything that the index covers (shaded).";
  $("where").className = outside ? "outside" : "";
  $("where").textContent = region === null ? all
    : outside ? "That is outside of what the index covers: nothing can be found there." : "Searching inside what is drawn.";
  if (!outside && !state.sealed) again();
};

// What is kept in a case keeps its answer, and what was decided of it, unless it is the photo shown.
const again = async () => {
  const turn = ++state.turn;
  const photos = state.photos.filter((one) => one === photo() || !one.sha256).sort((a, b) => (b === photo()) - (a === photo()));
  for (const one of photos) { one.answer = null; one.problem = null; }
  drawPhotos();
  for (const one of photos) if (turn === state.turn) await locate(one);
};

const searchIn = (index) => {
  state.index = index;
  ground.clear();
  ground.cover(index, state.about.tiles);
  $("served").textContent = `${index.index}: ${index.places} places, commit ${index.commit}; the model was trained on ${index.trained_on}`;
  $("words-form").hidden = !index.takes.includes("text");
  $("words-both").hidden = $("shown").hidden || !index.takes.includes("both");
  $("drop").hidden = state.sealed || !index.takes.includes("photo");
  $("tools").hidden = index.cells;
  setRegion(null);
};

const spot = () => {
  const parts = $("spot").value.split(/[,;\s]+/).filter(Boolean).map(Number);
  if (parts.length < 2 || parts.some((part) => !Number.isFinite(part)) || Math.abs(parts[0]) > 90 || Math.abs(parts[1]) > 180) {
    $("where").textContent = "Expected latitude, longitude and, if you like, metres.";
    return;
  }
  setRegion(ground.circle(parts[0], parts[1], parts[2] > 0 ? parts[2] : 200));
};

// --- cases ----------------------------------------------------------------------------------------------------

const question = (what, value) => new Promise((done) => {
  const dialog = $("ask");
  $("ask-what").textContent = what;
  $("ask-value").value = value;
  dialog.addEventListener("close", () => done(dialog.returnValue === "ok" ? $("ask-value").value.trim() : ""), { once: true });
  dialog.returnValue = "";
  dialog.showModal();
});

const listCases = async () => {
  const found = await ask("/v1/cases");
  const options = found.filter((one) => !one.problem).map((one) => new Option(`${one.name}${one.sealed ? " (sealed)" : ""}`, one.id));
  $("case").replaceChildren(new Option("none: nothing is kept", ""), ...options);
  $("case").value = state.caseId;
};

const openCase = async (id) => {
  state.caseId = id;
  const content = id ? await ask(`/v1/cases/${id}`) : null;
  state.sealed = content?.sealed ?? false;
  $("seal").hidden = !id || state.sealed;
  $("delete-case").hidden = $("exports").hidden = !id;
  for (const link of document.querySelectorAll("#exports a")) link.href = `/v1/cases/${id}/export?format=${link.dataset.format}`;
  $("drop").hidden = state.sealed || !state.index.takes.includes("photo");
  for (const name of ["fov", "roll"]) $(name).disabled = state.sealed;
  if (content) {
    state.photos = content.photos.map((kept) => {
      const one = new Photo(kept.name, null);
      Object.assign(one, { sha256: kept.sha256, answer: kept.answer, source: kept.source, words: kept.settings?.text ?? null, fov: kept.settings?.fov_deg ?? null, roll: kept.settings?.roll_deg ?? 0, asked: 1 });
      for (const decision of kept.decisions) one.decisions.set(decision.rank, decision);
      return one;
    });
    await show(state.photos.length ? 0 : -1);
    if (!state.photos.length) drawAnswer(false);
  } else {
    for (const one of state.photos) one.sha256 = null;
    drawAnswer(false);
  }
};

const begin = async () => {
  ground = new Ground($("map"), { choose, drawn: setRegion });
  const about = await ask("/v1/index");
  state.about = about;
  $("index").replaceChildren(...about.indexes.map((one) => new Option(one.cells ? `${one.index}: cells first` : one.index, one.index)));
  $("indexes").hidden = about.indexes.length < 2;
  $("index").addEventListener("change", () => { searchIn(about.indexes[$("index").selectedIndex]); });
  $("cases-bar").hidden = !about.cases;
  $("words-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = $("words").value.trim();
    if (words) addText(words);
  });
  $("words-both").addEventListener("click", () => { photo().words = $("words").value.trim() || null; locate(photo()); });
  searchIn(about.indexes[0]);
  if (about.cases) await listCases();

  $("files").addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
  const drop = $("drop");
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  document.addEventListener("dragover", () => drop.classList.add("over"));
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => { drop.classList.remove("over"); if (!state.sealed) addFiles(event.dataTransfer.files); });
  $("fov").addEventListener("input", () => { photo().fov = Number($("fov").value); drawPhoto(); soon(); });
  $("roll").addEventListener("input", () => { photo().roll = Number($("roll").value); drawPhoto(); soon(); });
  for (const button of document.querySelectorAll("[data-draw]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-draw]")) other.setAttribute("aria-pressed", String(other === button));
      $("where").className = "";
      $("where").textContent = ground.begin(button.dataset.draw);
    });
  }
  $("everywhere").addEventListener("click", () => { ground.clear(); setRegion(null); });
  $("spot").addEventListener("keydown", (event) => { if (event.key === "Enter") spot(); });
  $("swipe").addEventListener("input", swipe);
  $("flicker").addEventListener("click", flicker);
  $("accept").addEventListener("click", () => decide("accept"));
  $("reject").addEventListener("click", () => decide("reject"));
  $("note").addEventListener("change", () => decide(null));
  $("case").addEventListener("change", () => openCase($("case").value).catch((error) => { $("status").textContent = problemOf(error); }));
  $("new-case").addEventListener("click", async () => {
    const name = await question("What is the case called?", "");
    if (!name) return;
    const loose = state.photos.filter((one) => one.file);
    const made = await ask("/v1/cases", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ name }) });
    await openCase(made.id);
    await listCases();
    if (loose.length) await addFiles(loose.map((one) => new File([one.file], one.name, { type: one.file.type })));
  });
  $("seal").addEventListener("click", async () => {
    if (await question("A sealed case cannot be changed. Write seal to go on:", "") !== "seal") return;
    const sealed = await ask(`/v1/cases/${state.caseId}/seal`, { method: "POST" });
    await openCase(state.caseId);
    await listCases();
    $("where").textContent = `Sealed: sha256 ${sealed.sha256}`;
  });
  $("delete-case").addEventListener("click", async () => {
    if (await question("The case and its photos are gone for good. Write delete to go on:", "") !== "delete") return;
    await ask(`/v1/cases/${state.caseId}`, { method: "DELETE" });
    state.photos = [];
    state.at = -1;
    drawPhotos();
    $("shown").hidden = true;
    await openCase("");
    await listCases();
  });
  document.querySelector("#exports").addEventListener("click", async (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault(); // a token travels in a header, which a plain link does not have
    const blob = await cut.blob(link.href);
    const save = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `case-${state.caseId}.${link.dataset.format}` });
    save.click();
    setTimeout(() => URL.revokeObjectURL(save.href), 10_000);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text], select, dialog *")) return;
    const key = event.key.toLowerCase();
    if (key >= "1" && key <= "9") choose(Number(key) - 1);
    else if (key === "a") decide("accept");
    else if (key === "r") decide("reject");
    else if (key === "n") { event.preventDefault(); $("note").focus(); }
    else if (key === "f") flicker();
    else if (key === "escape") ground.stop();
  });
  swipe();
  document.documentElement.dataset.ready = "yes";
};

begin().catch((error) => { $("status").textContent = problemOf(error); });

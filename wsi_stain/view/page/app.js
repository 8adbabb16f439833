"use strict";
/* The page: which slide, how both pictures are compared, what is stained. */

const $ = (id) => document.getElementById(id);
const MODES = ["curtain", "fade", "side", "single"];
const client = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");  // randomUUID needs https
const view = { mode: "curtain", at: 50, front: "stain" };
let slides = [], number = -1, info = null, he = null, stain = null, fresh = null, dabItem = null, leader = null;
let shareLink = "", problem = "";

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const text = await response.text();
  let content = null;
  try { content = JSON.parse(text); } catch { /* one line of text */ }
  if (!response.ok) throw new Error(content?.error || text.trim() || `error ${response.status}`);
  return content;
}

// ---- the address -------------------------------------------------------------------------------------------------

function readAddress() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function writeAddress() {
  const { x, y } = he.centre;
  const parts = { slide: number, x: Math.round(x), y: Math.round(y), zoom: zoomOf().toPrecision(4), mode: view.mode, at: view.at };
  if (view.mode === "single") parts.front = view.front;
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
}

/** The zoom at which the movement in progress ends. */
function zoomOf() {
  const viewport = he.viewer.viewport;
  return viewport.getZoom(false) * viewport.getContainerSize().x / info.size[1];
}

// ---- comparing ---------------------------------------------------------------------------------------------------

function setMode(mode) {
  const wasSide = view.mode === "side";
  view.mode = MODES.includes(mode) ? mode : "curtain";
  document.querySelector("main").dataset.mode = view.mode;
  document.querySelectorAll("#modes button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.mode === view.mode));
  $("at").disabled = !["curtain", "fade"].includes(view.mode);
  if (wasSide !== (view.mode === "side") && he) {
    const { x, y } = he.centre, zoom = zoomOf(), [y0, x0, y1, x1] = he.box, [h, w] = info.size;
    const isWhole = (y1 - y0 >= h && x1 - x0 >= w) && Math.abs(x - w / 2) < w / 4 && Math.abs(y - h / 2) < h / 4;
    requestAnimationFrame(() => {
      [he, stain].forEach((p) => p.viewer.forceResize());
      requestAnimationFrame(() => {
        [he, stain].forEach((p) => (isWhole ? p.home(true) : p.goTo(x, y, zoom, true)));
        arrange();
      });
    });
  }
  arrange();
}

function setAt(at) {
  view.at = Math.min(100, Math.max(0, Math.round(at)));
  arrange();
}

function arrange() {
  const { mode, at, front } = view;
  $("at").value = at;
  $("curtain").style.left = `${at}%`;
  const element = $("stain").style;
  element.clipPath = mode === "curtain" ? `inset(0 0 0 ${at}%)` : "none";
  element.opacity = mode === "fade" ? at / 100 : 1;
  element.visibility = mode === "single" && front === "he" ? "hidden" : "visible";
  $("he-label").hidden = (mode === "single" && front === "stain") || (mode === "curtain" && at < 2);
  $("stain-label").hidden = (mode === "single" && front === "he") || (mode === "curtain" && at > 98);
  if (he) later(writeAddress);
}

function dragCurtain(event) {
  const box = document.querySelector("main").getBoundingClientRect();
  setAt(100 * (event.clientX - box.left) / box.width);
}

function flip() {
  view.front = view.front === "he" ? "stain" : "he";
  if (view.mode !== "single") setMode("single");
  else arrange();
}

// ---- what is read off --------------------------------------------------------------------------------------------

const timers = new Map();
function later(func, ms = 200) {
  clearTimeout(timers.get(func));
  timers.set(func, setTimeout(func, ms));
}

function moved() {
  showScale();
  later(writeAddress);
  later(look, 120);
}

function showScale() {
  const pxPerUm = info.mpp ? he.zoom / info.mpp : he.zoom;
  let length = 10 ** Math.floor(Math.log10(140 / pxPerUm));
  for (const factor of [5, 2]) if (length * factor * pxPerUm <= 140) { length *= factor; break; }
  $("bar").style.width = `${length * pxPerUm}px`;
  const unit = info.mpp ? (length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(2)} µm`) : `${+length.toPrecision(2)} px`;
  const power = info.mpp ? ` · ${(10 * pxPerUm).toPrecision(2) * 1}×` : "";
  $("bar-text").textContent = unit + power;
}

function showPosition(picture, position) {
  const p = picture.viewer.viewport.pointFromPixel(position, true), w = info.size[1];
  const x = Math.floor(p.x * w), y = Math.floor(p.y * w);
  const inside = x >= 0 && y >= 0 && x < w && y < info.size[0];
  const um = info.mpp ? ` · ${Math.round(x * info.mpp)}, ${Math.round(y * info.mpp)} µm` : "";
  $("readout").textContent = inside ? `x ${x}, y ${y} px${um}` : "";
}

function showFacts(state) {
  const f = info.facts;
  const painted = info.live ? `${state.complete ? 100 : Math.min(99.9, 100 * state.share).toFixed(state.share < 0.1 ? 1 : 0)} % stained` : "";
  $("notice").textContent = info.notice;
  const device = state.device || f.device;
  $("facts").textContent = [f.virtual ? `${f.stain} (${f.virtual})` : f.stain && `virtual ${f.stain}`, f.model, f.software, device, painted].filter(Boolean).join(" · ");
  let text = (state.warnings || []).join("; "), bad = Boolean(text);
  if (problem) { text = problem; bad = true; }
  else if (state.error) { text = `Staining stopped: ${state.error}`; bad = true; }
  else if (state.blocked) text = `Only what is stained can be seen: ${state.blocked}`;
  else if (info.live && !state.device && !text) text = "Loading the model …";
  else if (info.live && !state.complete && isTooLarge() && !state.region && !text) text = "Zoom in to stain what you look at";
  $("message").textContent = text;
  $("message").hidden = !text;
  $("message").classList.toggle("bad", bad);
  const region = state.region;
  $("progress").hidden = !region;
  $("region").disabled = $("everything").disabled = Boolean(state.blocked || state.complete);
  if (region) {
    const [bar, words] = $("progress").children;
    bar.value = region.done / region.total;
    words.textContent = `${region.done} of ${region.text}` + (region.left_s === null ? "" : `, ${duration(region.left_s)} left`);
  }
  info.state = state;
}

function duration(s) {
  return s < 90 ? `${Math.ceil(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

// ---- staining ----------------------------------------------------------------------------------------------------

/** What is in view, in px of the stain: [y0, x0, y1, x1]. */
function stainBox() {
  const [x, y, scale] = info.place, [y0, x0, y1, x1] = he.box, [h, w] = info.stain[0].size;
  const inside = (v, n) => Math.min(n, Math.max(0, v));
  return [
    inside(Math.floor((y0 - y) / scale), h), inside(Math.floor((x0 - x) / scale), w),
    inside(Math.ceil((y1 - y) / scale), h), inside(Math.ceil((x1 - x) / scale), w),
  ];
}

function isTooLarge() {
  const [y0, x0, y1, x1] = stainBox();
  return (y1 - y0) * (x1 - x0) > info.most_px;
}

function look() {
  if (!info?.live) return;
  const box = document.hidden || isTooLarge() ? null : stainBox();
  ask(`/slides/${number}/look`, { client, box }).catch(report);
  showFacts(info.state);
}

/** Whether the slide suits the stain or the model is known once the slide has been read. */
async function lateWarnings(current) {
  if (number === current) showFacts((await ask(`/slides/${current}`)).state);
}

async function follow(current) {
  for (; number === current;) {
    try {
      const state = await ask(`/slides/${current}/changes?client=${client}&since=${fresh.version}`);
      if (number !== current) return;
      if (problem) { problem = ""; look(); }
      fresh.update(state.version, state.boxes);
      showFacts(state);
      if (shown.has("unreadable")) outline("unreadable", true);
    } catch (error) {
      report(error);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

function report(error) {
  problem = error instanceof TypeError ? "The server does not answer; it has ended, or the connection is lost" : error.message;
  if (info) showFacts(info.state);
  else { $("message").textContent = problem; $("message").hidden = false; $("message").classList.add("bad"); }
}

async function stainNow(body) {
  try { showFacts(await ask(`/slides/${number}/stain`, body)); } catch (error) { report(error); }
}

// ---- outlines ----------------------------------------------------------------------------------------------------

const shown = new Set();
async function outline(kind, on) {
  on ? shown.add(kind) : shown.delete(kind);
  $(kind).setAttribute("aria-pressed", on);
  const rings = on ? (await ask(`/slides/${number}/outlines/${kind}`)).rings : null;
  if (shown.has(kind) === on) [he, stain].forEach((picture) => picture.showOutlines(kind, rings));
}

function setDab(on) {
  if (dabItem === null) return;
  $("dab").setAttribute("aria-pressed", on);
  dabItem.setOpacity(on ? 1 : 0);
}

// ---- opening -----------------------------------------------------------------------------------------------------

async function open(n) {
  close();
  number = n;
  $("list").hidden = true;
  $("name").textContent = slides[n].name;
  document.title = `${slides[n].name} – wsi-stain`;
  $("message").textContent = "Opening the slide …";
  $("message").hidden = false;
  try { info = await ask(`/slides/${n}`); } catch (error) { report(error); return; }
  const address = readAddress();
  fresh = new Fresh();
  fresh.version = info.state.version;
  const base = `/slides/${n}`;
  he = new Picture("he", info.size, "overview");
  stain = new Picture("stain", info.size);
  window.pictures = { he, stain };
  const own = info.live ? fresh.methods(info.stain) : null;
  await he.add(tileSource(`${base}/he`, info.he));
  const item = await stain.add(tileSource(`${base}/stain`, info.stain, own), info.place);
  $("dab").hidden = !info.dab;
  dabItem = info.dab ? await stain.add(tileSource(`${base}/dab`, info.stain, own), info.place, 0) : null;
  if (info.live) [item, dabItem].filter(Boolean).forEach((one) => fresh.watch(stain.viewer, one));
  limitZoom();
  $("stain-label").textContent = info.facts.virtual ? info.facts.stain : `virtual ${info.facts.stain}`;
  $("staining").hidden = !info.live;
  $("about").textContent = `${info.facts.software || "wsi-stain"}. A virtual stain is a prediction from H&E; it does not measure a protein.`;
  if (address.at) view.at = Number(address.at);
  if (address.front) view.front = address.front;
  setMode(address.mode || view.mode);
  leader = he;
  if (Number(address.slide) === n && address.zoom) he.goTo(Number(address.x), Number(address.y), Number(address.zoom), true);
  else he.home(true);
  for (const picture of [he, stain]) {
    for (const event of ["canvas-press", "canvas-scroll", "canvas-pinch"]) picture.viewer.addHandler(event, () => { leader = picture; });
    picture.viewer.addHandler("update-viewport", () => { if (leader === picture) (picture === he ? stain : he).follow(picture); });
    picture.viewer.addHandler("viewport-change", moved);
    picture.viewer.addHandler("resize", limitZoom);
    new OpenSeadragon.MouseTracker({
      element: picture.viewer.canvas, userData: "readout",
      moveHandler: (event) => showPosition(picture, event.position),
    });
  }
  stain.follow(he);
  showFacts(info.state);
  moved();
  if (info.live) follow(n);
  setTimeout(() => lateWarnings(n), 5000);
}

/** Both pictures stop at the same zoom: four screen px per px of the slide. */
function limitZoom() {
  for (const picture of [he, stain]) {
    const viewport = picture.viewer.viewport;
    viewport.maxZoomLevel = 4 * info.size[1] / viewport.getContainerSize().x;
    viewport.minZoomLevel = 0.3;
  }
}

function close() {
  number = -1;
  for (const picture of [he, stain]) {
    picture?.viewer.destroy();
    picture?.svg.remove();
  }
  $("overview").replaceChildren();
  he = stain = info = dabItem = null;
  problem = "";
  shown.clear();
  ["tissue", "unreadable", "dab"].forEach((id) => $(id).setAttribute("aria-pressed", false));
}

function list() {
  close();
  $("name").textContent = `${slides.length} slides`;
  $("message").hidden = $("progress").hidden = true;
  $("staining").hidden = true;
  $("list").hidden = false;
  $("list").replaceChildren(...slides.map((slide, n) => {
    const link = document.createElement("a");
    link.href = `#slide=${n}`;
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/slides/${n}/thumbnail`;
    link.append(image, slide.name);
    return link;
  }));
}

function route() {
  const n = Number(readAddress().slide ?? (slides.length === 1 ? 0 : NaN));
  if (!(n in slides)) list();
  else if (n !== number) open(n);
}

// ---- keys and buttons --------------------------------------------------------------------------------------------

function pan(dx, dy) {
  const b = leader.viewer.viewport.getBounds(false);
  leader.viewer.viewport.panBy(new OpenSeadragon.Point(dx * b.width / 5, dy * b.height / 5));
}

function lead(func) {
  leader = he;
  func();
}

const KEYS = {
  1: () => setMode("curtain"), 2: () => setMode("fade"), 3: () => setMode("side"), 4: () => setMode("single"),
  "[": () => setAt(view.at - 5), "]": () => setAt(view.at + 5),
  " ": flip, 0: () => lead(() => he.home()),
  "+": () => lead(() => he.viewer.viewport.zoomBy(1.5)), "=": () => KEYS["+"](), "-": () => lead(() => he.viewer.viewport.zoomBy(1 / 1.5)),
  ArrowLeft: () => lead(() => pan(-1, 0)), ArrowRight: () => lead(() => pan(1, 0)),
  ArrowUp: () => lead(() => pan(0, -1)), ArrowDown: () => lead(() => pan(0, 1)),
  t: () => $("tissue").click(), u: () => $("unreadable").click(), d: () => $("dab").click(), r: () => $("region").click(),
  h: () => ($("help").open ? $("help").close() : $("help").showModal()), "?": () => KEYS.h(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  if (!he && !["h", "?"].includes(event.key)) return;
  event.preventDefault();
  if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
  KEYS[event.key]();
}, true);
document.querySelectorAll("#modes button").forEach((b) => b.addEventListener("click", () => setMode(b.dataset.mode)));
$("at").addEventListener("input", () => setAt($("at").valueAsNumber));
$("curtain").addEventListener("pointerdown", (event) => {
  $("curtain").setPointerCapture(event.pointerId);
  $("curtain").addEventListener("pointermove", dragCurtain);
});
$("curtain").addEventListener("lostpointercapture", () => $("curtain").removeEventListener("pointermove", dragCurtain));
for (const kind of ["tissue", "unreadable"]) $(kind).addEventListener("click", () => outline(kind, !shown.has(kind)).catch(report));
$("dab").addEventListener("click", () => setDab($("dab").getAttribute("aria-pressed") !== "true"));
$("region").addEventListener("click", () => stainNow({ box: stainBox() }));
$("everything").addEventListener("click", () => stainNow({ everything: true }));
$("progress").querySelector("button").addEventListener("click", () => stainNow({ stop: true }));
$("help-button").addEventListener("click", KEYS.h);
$("help").querySelector("button").addEventListener("click", () => $("help").close());
$("link").addEventListener("click", async () => {
  const address = location.origin + shareLink + location.hash;
  try {
    await navigator.clipboard.writeText(address);
    $("link").textContent = "Copied";
    setTimeout(() => { $("link").textContent = "Copy link"; }, 1500);
  } catch { prompt("Address of this view", address); }
});
document.addEventListener("visibilitychange", look);
window.addEventListener("hashchange", route);

ask("/slides").then((content) => {
  slides = content.slides;
  shareLink = content.link;
  $("list-link").hidden = slides.length < 2;
  route();
}).catch(report);

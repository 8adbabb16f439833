"use strict";
/* One pyramid in one OpenSeadragon viewer. All coordinates are px of the slide's level 0; its width is 1 in the viewport. */

/** The levels of a layer as a tile source; `fresh` loads tiles itself, so that they can be loaded again. */
function tileSource(url, levels, fresh) {
  const last = levels.length - 1;
  const at = (level) => levels[last - level];
  const source = new OpenSeadragon.TileSource({
    width: levels[0].size[1], height: levels[0].size[0], tileWidth: 512, tileHeight: 512, minLevel: 0, maxLevel: last,
  });
  Object.assign(source, {
    getTileWidth: (level) => at(level).tile[1],
    getTileHeight: (level) => at(level).tile[0],
    getLevelScale: (level) => 1 / at(level).downsample,
    getNumTiles: (level) => new OpenSeadragon.Point(at(level).grid[1], at(level).grid[0]),
    getTileUrl: (level, x, y) => `${url}/${last - level}/${y}/${x}`,
  });
  return fresh ? Object.assign(source, fresh) : source;
}

/** A tile's picture, never from a cache. */
async function loadTile(url, signal) {
  const response = await fetch(url, { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`${response.status} ${url}`);
  return createImageBitmap(await response.blob());
}

/** Tiles that change while they are shown: what the server reports as changed is loaded again, without a gap. */
class Fresh {
  constructor() {
    this.version = 0;
    this.changes = [];
    this.items = [];
    this.stale = new Set();
  }

  /** Methods for the tile source of a layer. */
  methods(levels) {
    const last = levels.length - 1;
    const box = (tile) => {
      const { downsample: d, tile: [h, w] } = levels[last - tile.level];
      return [tile.y * h * d, tile.x * w * d, (tile.y + 1) * h * d, (tile.x + 1) * w * d];
    };
    return {
      boxOf: box,
      downloadTileStart: (job) => {
        job.userData.abort = new AbortController();
        this.load(job.src, box(job.tile), job.userData.abort.signal)
          .then((bitmap) => job.finish(bitmap, null, "imageBitmap"))
          .catch((error) => job.fail(String(error), null));
      },
      downloadTileAbort: (job) => job.userData.abort.abort(),
    };
  }

  /** A tile's picture; loaded again if it changed while it was on its way. */
  async load(url, box, signal) {
    for (;;) {
      const version = this.version;
      const bitmap = await loadTile(url, signal);
      if (!this.changes.some((change) => change.version > version && touch(change.box, box))) return bitmap;
      bitmap.close();
    }
  }

  watch(viewer, item) {
    this.items.push(item);
    viewer.addHandler("tile-invalidated", async (event) => {
      const tile = event.tile;
      if (tile.tiledImage !== item || !this.stale.delete(tile)) return;
      try {
        await event.setData(await this.load(tile.getUrl(), item.source.boxOf(tile)), "imageBitmap");
      } catch (error) {
        console.warn(error);
      }
    });
  }

  /** Load again what lies under these boxes, in px of the layer. */
  update(version, boxes) {
    this.version = version;
    if (!boxes.length) return;
    this.changes = this.changes.concat(boxes.map((box) => ({ version, box }))).slice(-500);
    for (const item of this.items) {
      const tiles = [];
      for (const level of Object.values(item.tilesMatrix)) {
        for (const column of Object.values(level)) {
          for (const tile of Object.values(column)) {
            if (tile && tile.loaded && boxes.some((box) => touch(box, item.source.boxOf(tile)))) tiles.push(tile);
          }
        }
      }
      tiles.forEach((tile) => this.stale.add(tile));
      if (tiles.length) item.viewer.world.requestTileInvalidateEvent(tiles, OpenSeadragon.now(), true);
    }
  }
}

function touch(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

/** A viewer of one picture of the slide. */
class Picture {
  constructor(id, size, overview) {
    this.size = size;
    this.element = document.getElementById(id);
    this.viewer = OpenSeadragon({
      element: this.element,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: Boolean(overview),
      ...(overview ? { navigatorId: overview, navigatorAutoFade: false } : {}),
      visibilityRatio: 0.1,
      constrainDuringPan: false,
      minZoomImageRatio: 0.4,
      animationTime: 0.4,
      blendTime: 0,
      immediateRender: false,
      imageLoaderLimit: 6,
      maxImageCacheCount: 400,
      timeout: 120000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      keyboardNavEnabled: false,
    });
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.group = this.svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "g"));
    this.element.append(this.svg);
    this.viewer.addHandler("update-viewport", () => this.placeOutlines());
  }

  /** Add a layer at `place`, [x, y, px of the slide per px of the layer]. */
  add(source, place = [0, 0, 1], opacity = 1) {
    const w = this.size[1];
    return new Promise((resolve, reject) => {
      this.viewer.addTiledImage({
        tileSource: source, opacity,
        x: place[0] / w, y: place[1] / w, width: source.dimensions.x * place[2] / w,
        success: (event) => resolve(event.item), error: (event) => reject(new Error(event.message)),
      });
    });
  }

  /** Screen px per px of the slide. */
  get zoom() {
    return this.viewer.viewport.getZoom(true) * this.viewer.viewport.getContainerSize().x / this.size[1];
  }

  /** What is in view, [y0, x0, y1, x1]. */
  get box() {
    const b = this.viewer.viewport.getBounds(false), w = this.size[1];
    return [b.y * w, b.x * w, (b.y + b.height) * w, (b.x + b.width) * w];
  }

  get centre() {
    const c = this.viewer.viewport.getCenter(false);
    return { x: c.x * this.size[1], y: c.y * this.size[1] };
  }

  goTo(x, y, zoom, now) {
    const viewport = this.viewer.viewport, w = this.size[1];
    viewport.zoomTo(zoom * w / viewport.getContainerSize().x, null, now);
    viewport.panTo(new OpenSeadragon.Point(x / w, y / w), now);
  }

  home(now) {
    this.viewer.viewport.fitBounds(new OpenSeadragon.Rect(0, 0, 1, this.size[0] / this.size[1]), now);
  }

  follow(other) {
    const mine = this.viewer.viewport, theirs = other.viewer.viewport;
    mine.zoomTo(theirs.getZoom(true), null, true);
    mine.panTo(theirs.getCenter(true), true);
  }

  showOutlines(kind, rings) {
    this.group.querySelector(`.${kind}`)?.remove();
    if (!rings) return;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", kind);
    path.setAttribute("d", rings.map((ring) => `M${ring.map((p) => p.join(" ")).join("L")}Z`).join(""));
    this.group.append(path);
  }

  placeOutlines() {
    const p = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    this.group.setAttribute("transform", `translate(${p.x} ${p.y}) scale(${this.zoom})`);
  }
}

"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const VIEWS = ["Query image", "Reconstruction", "Anomaly map over the query"], MAP = 2;
  const PANELS = ["query image", "reconstruction", "anomaly map"];
  const FILES = ["query", "reconstruction", "map"];
  const GAP = 12, PAD = 8, INNER = 4, CAPTION = 104, NARROWEST = 300, OVERSCAN = 2;
  const PRINTED = 300, MOST_BOXES = 50;

  const images = data.images.map((row, at) => {
    const [rank, path, score, p, q, odd, number, width, height, terms, boxes, less, mismatch, nearest] = row;
    const cut = path.lastIndexOf("/");
    // A page of a file has a path like scan.tif/3. The name shown for it includes the file.
    const start = /\.[a-z]+\/\d+$/i.test(path) ? path.lastIndexOf("/", cut - 1) : cut;
    return {
      at, file: at in data.names ? data.names[at] : path, rank, path, score, p, q, odd, number, width, height, terms, boxes, less, mismatch, nearest,
      folder: cut < 0 ? "" : path.slice(0, cut), name: path.slice(start + 1), key: path.toLowerCase(),
    };
  });
  const byName = images.map((_, i) => i).sort((a, b) => (images[a].path < images[b].path ? -1 : 1));

  const number = (value, digits = 4) => (value === null ? "-" : String(+value.toPrecision(digits)));
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // --- pictures: they stay text until they are shown ---

  const sources = (image) => {
    if (image.number < 0) return [];
    if (data.assets !== null) {
      const stem = data.assets + String(image.number).padStart(6, "0");
      return FILES.map((name) => `${stem}-${name}.webp`);
    }
    const held = $("p" + image.number);
    return held ? held.textContent.split(" ").map((text) => "data:image/webp;base64," + text) : [];
  };

  const fill = (picture, image, side) => {
    picture.addEventListener("load", () => {
      picture.classList.toggle("pixels", picture.naturalWidth <= 32 && picture.naturalHeight <= 32);
    });
    const longest = Math.max(image.width, image.height) || 1;
    picture.style.width = (side * (image.width || 1)) / longest + "px";
    picture.style.height = (side * (image.height || 1)) / longest + "px";
  };

  // --- boxes: a dashed one is of a region below the level of normal images ---

  const SVG = "http://www.w3.org/2000/svg";
  const boxes = (image) => image.boxes.slice(0, MOST_BOXES).reverse().flatMap(([left, top, width, height, below]) =>
    ["halo", below ? "below" : "above"].map((kind) => {
      const mark = document.createElementNS(SVG, "rect");
      for (const [key, value] of Object.entries({ x: left, y: top, width, height, class: kind })) mark.setAttribute(key, value);
      return mark;
    }));
  const marked = (image) => {
    const sheet = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ class: "boxes", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" })) {
      sheet.setAttribute(key, value);
    }
    sheet.append(...boxes(image));
    return sheet;
  };

  // --- marks: what a person says of an image; this browser keeps them for this report ---

  const ANOMALY = 1, NORMAL = 0, KEPT = "anoscan-marks-" + data.key;
  const marks = new Map();
  let unsaved = false, refused = false, open = null;

  // "Confirmed" beside the verdict normal could be read as "it is normal".
  const word = (image, value) =>
    image.odd ? (value === ANOMALY ? "Confirmed" : "False alarm") : (value === ANOMALY ? "Missed anomaly" : "Normal");

  const markers = (image) => {
    const group = make("span", "marks");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `Mark ${image.name}`);
    for (const value of [ANOMALY, NORMAL]) {
      const button = make("button", "", word(image, value));
      button.type = "button";
      button.dataset.value = value;
      button.disabled = image.file === null;
      button.title = image.file === null ? "The name of this image does not fit into a CSV, so it cannot be labelled"
        : value === ANOMALY ? "Label it as an anomaly (c)" : "Label it as normal (f)";
      button.setAttribute("aria-label", `${button.textContent}: ${image.name}`);
      button.addEventListener("click", () => mark(image, value));
      group.append(button);
    }
    return group;
  };

  const pressed = (group, image) => {
    for (const button of group.querySelectorAll(".marks button")) {
      button.setAttribute("aria-pressed", String(marks.get(image.at) === +button.dataset.value));
    }
  };
  const stamped = (item, image) => {
    const value = marks.get(image.at);
    pressed(item, image);
    item.querySelector(".stamp").textContent = value === undefined ? "" : word(image, value).toLowerCase();
    if (value === undefined) delete item.dataset.mark;
    else item.dataset.mark = value;
  };

  const tell = () => {
    const anomalies = [...marks.values()].filter((value) => value === ANOMALY).length;
    const some = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
    $("marked").textContent = marks.size
      ? `Marked: ${some(anomalies, "anomaly", "anomalies")}, ${(marks.size - anomalies).toLocaleString("en")} normal`
      : "No image is marked";
    $("save").disabled = $("forget").disabled = !marks.size;
    $("unkept").hidden = !refused || !marks.size;
    for (const [place, item] of live) stamped(item, images[shown[place]]);
    if (open) pressed($("viewer-marks"), open);
  };

  const keep = () => {
    try {
      if (marks.size) localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(marks)));
      else localStorage.removeItem(KEPT);
      refused = false;
    } catch { refused = true; }
  };
  const recall = () => {
    marks.clear();
    try {
      for (const [at, value] of Object.entries(JSON.parse(localStorage.getItem(KEPT) || "{}"))) {
        if (images[at] && images[at].file !== null && (value === ANOMALY || value === NORMAL)) marks.set(+at, value);
      }
    } catch { /* no storage, or nothing that this page wrote */ }
  };

  const mark = (image, value) => {
    if (!image || image.file === null) return;
    if (marks.get(image.at) === value) marks.delete(image.at);
    else marks.set(image.at, value);
    unsaved = true;
    keep();
    tell();
  };

  const cell_of = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const save = () => {
    const rows = [...marks].sort((a, b) => a[0] - b[0])
      .map(([at, value]) => `${cell_of(images[at].file)},${value === ANOMALY ? "anomaly" : "normal"}\r\n`);
    const text = "path,label\r\n" + rows.join("");
    // Spreadsheets take a file for UTF-8 only with this mark at its start.
    const blob = new Blob([/[^\0-\x7f]/.test(text) ? "\ufeff" : "", text], { type: "text/csv;charset=utf-8" });
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = "labels.csv";
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved = false;
  };

  $("save").addEventListener("click", save);
  $("forget").addEventListener("click", () => {
    if (!confirm(`Remove the marks of all ${marks.size} images?`)) return;
    marks.clear();
    unsaved = false;
    keep();
    tell();
  });
  // Another window with the same report must not be overwritten.
  addEventListener("storage", (event) => { if (event.key === KEPT) { recall(); tell(); } });
  addEventListener("beforeunload", (event) => { if (refused && unsaved && marks.size) event.preventDefault(); });

  // --- the list: only cards in or near the window exist ---

  const grid = $("grid");
  const live = new Map();
  let shown = [], current = 0, columns = 1, cell = { width: 0, side: 0, height: 0 }, printing = false;

  const card = (place) => {
    const image = images[shown[place]];
    const item = make("li");
    const button = make("button", "card" + (image.odd ? " odd" : ""));
    button.type = "button";
    const verdict = image.odd ? "anomalous" : "normal";
    button.setAttribute("aria-label",
      `Rank ${image.rank ?? "-"}, ${image.name}, score ${number(image.score)}, ${verdict}`);
    const row = make("span", "row");
    const from = sources(image);
    VIEWS.forEach((view, i) => {
      const frame = make("span", "frame");
      if (from[i]) {
        const picture = make("img");
        picture.alt = `${view} of ${image.name}`;
        picture.decoding = "async";
        fill(picture, image, cell.side);
        picture.src = from[i];
        const over = make("span", "over");
        over.append(picture);
        if (i === MAP) over.append(marked(image));
        frame.append(over);
      } else if (document.readyState !== "loading") {
        frame.append(make("span", "absent", "not found"));
      }
      const panel = make("span", "panel"), says = make("span", "says", PANELS[i]);
      says.setAttribute("aria-hidden", "true");
      panel.append(frame, says);
      row.append(panel);
    });
    const line = make("span", "line");
    line.append(make("span", "rank", image.rank === null ? "" : `#${image.rank}`),
      make("span", "score", number(image.score)),
      make("span", "stamp"), make("span", "verdict " + (image.odd ? "odd" : "plain"), verdict));
    const name = make("span", "name", image.mismatch.length ? `Mismatch. ${image.name}` : image.name);
    name.title = image.path;
    button.append(row, line, name);
    button.addEventListener("click", () => { current = place; view(place); });
    item.append(button, markers(image));
    item.dataset.place = place;
    stamped(item, image);
    item.setAttribute("aria-posinset", place + 1);
    item.setAttribute("aria-setsize", shown.length);
    return item;
  };

  const measure = () => {
    const width = grid.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (NARROWEST + GAP)));
    const wide = (width - GAP * (columns - 1)) / columns;
    const side = Math.floor((wide - 2 * PAD - (VIEWS.length - 1) * INNER - 2) / VIEWS.length);
    cell = { width: wide, side, height: side + CAPTION + 2 * PAD };
    grid.style.setProperty("--side", side + "px");
    grid.style.height = Math.max(0, Math.ceil(shown.length / columns) * (cell.height + GAP) - GAP) + "px";
  };

  const render = () => {
    const pitch = cell.height + GAP, top = grid.getBoundingClientRect().top;
    let first = Math.max(0, Math.floor(-top / pitch) - OVERSCAN) * columns;
    let last = Math.max(0, Math.ceil((innerHeight - top) / pitch) + OVERSCAN) * columns;
    if (printing) { first = 0; last = PRINTED; }
    last = Math.min(last, shown.length);
    for (const [place, item] of live) {
      if (place < first || place >= last) { item.remove(); live.delete(place); }
    }
    for (let place = first, at = 0; place < last; place++, at++) {
      let item = live.get(place);
      if (!item) { item = card(place); live.set(place, item); }
      item.style.width = cell.width + "px";
      item.style.height = cell.height + "px";
      const left = (place % columns) * (cell.width + GAP), down = Math.floor(place / columns) * pitch;
      item.style.transform = `translate(${left}px, ${down}px)`;
      for (const button of item.querySelectorAll("button")) button.tabIndex = place === current ? 0 : -1;
      if (grid.children[at] !== item) grid.insertBefore(item, grid.children[at] || null);
    }
    if (!live.has(current) && live.size) live.values().next().value.firstChild.tabIndex = 0;
  };

  const redraw = () => {
    for (const item of live.values()) item.remove();
    live.clear();
    measure();
    render();
  };

  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render(); });
  };

  const go = (place) => {
    if (!shown.length) return;
    current = Math.max(0, Math.min(place, shown.length - 1));
    const pitch = cell.height + GAP, top = grid.getBoundingClientRect().top + Math.floor(current / columns) * pitch;
    const head = $("filters").offsetHeight + GAP, foot = innerHeight - $("review").offsetHeight;
    if (top < head) scrollBy(0, top - head);
    else if (top + cell.height > foot) scrollBy(0, top + cell.height - foot + GAP);
    render();
    const item = live.get(current);
    if (item) item.firstChild.focus({ preventScroll: true });
  };

  // What has the focus is where the keys go on from.
  grid.addEventListener("focusin", (event) => {
    const item = event.target.closest("li");
    // A viewer that closes gives the focus back to the card that opened it.
    if (item && !open && +item.dataset.place !== current) { current = +item.dataset.place; render(); }
  });

  // --- filters ---

  const form = $("filters");
  const folders = new Map();
  for (const image of images) {
    for (let folder = image.folder; folder; ) {
      folders.set(folder, (folders.get(folder) || 0) + 1);
      const cut = folder.lastIndexOf("/");
      folder = cut < 0 ? "" : folder.slice(0, cut);
    }
  }
  // A folder that holds all images is no useful filter.
  const telling = [...folders].filter(([, count]) => count < images.length).sort();
  const above = Math.max(0, ...[...folders].filter(([, count]) => count === images.length).map(([f]) => f.length + 1));
  $("folders").hidden = telling.length < 2;
  for (const [folder, count] of telling.slice(0, 1000)) {
    const option = make("option", "", `${folder.slice(above)} (${count})`);
    option.value = folder;
    $("folder").append(option);
  }

  const apply = () => {
    const verdict = form.elements.verdict.value, folder = $("folder").value;
    const words = $("name").value.toLowerCase().split(/\s+/).filter(Boolean);
    const marked = $("mark").value;
    const from = $("from").valueAsNumber, to = $("to").valueAsNumber, order = $("order").value;
    const places = order === "name" ? byName : images.map((_, i) => i);
    shown = places.filter((i) => {
      const image = images[i];
      return (verdict === "" || image.odd === +verdict) &&
        (!marked || (marked === "none" ? !marks.has(i) : marks.get(i) === +marked)) &&
        (!folder || image.folder === folder || image.folder.startsWith(folder + "/")) &&
        !(image.score < from) && !(image.score > to) && words.every((word) => image.key.includes(word));
    });
    if (order === "low") shown.reverse();
    current = 0;
    const format = (n) => n.toLocaleString("en");
    $("count").textContent = shown.length === images.length
      ? `${format(images.length)} images` : `${format(shown.length)} of ${format(images.length)} images`;
    $("none").hidden = shown.length > 0;
    brush(from, to);
    redraw();
  };

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  const reset = () => { form.reset(); };
  form.addEventListener("reset", () => setTimeout(apply));
  $("clear").addEventListener("click", () => { reset(); $("name").focus(); });

  // --- the chart: dragging over it selects a range of scores ---

  const chart = $("chart");
  const low = chart ? +chart.dataset.low : 0, high = chart ? +chart.dataset.high : 1;
  const brush = (from, to) => {
    if (!chart) return;
    const bar = $("brush"), place = (score, other) =>
      Number.isNaN(score) ? other : Math.min(100, Math.max(0, (100 * (score - low)) / (high - low)));
    const start = place(from, 0), end = place(to, 100);
    const all = Number.isNaN(from) && Number.isNaN(to);
    bar.setAttribute("x", start + "%");
    bar.setAttribute("width", all ? 0 : Math.max(0, end - start) + "%");
  };
  if (chart) {
    let start = null;
    const share = (event) => {
      const box = chart.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    };
    chart.addEventListener("pointerdown", (event) => {
      start = share(event);
      chart.setPointerCapture(event.pointerId);
    });
    chart.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const ends = [start, share(event)].sort((a, b) => a - b);
      if (ends[1] - ends[0] < 0.01) return;
      const score = (at) => +(low + at * (high - low)).toPrecision(3);
      $("from").value = ends[0] < 0.005 ? "" : score(ends[0]);
      $("to").value = ends[1] > 0.995 ? "" : score(ends[1]);
      apply();
    });
    chart.addEventListener("pointerup", (event) => {
      if (start !== null && Math.abs(share(event) - start) < 0.01) {
        $("from").value = "";
        $("to").value = "";
        apply();
      }
      start = null;
    });
    chart.addEventListener("pointercancel", () => { start = null; });
  }

  // --- the viewer ---

  const viewer = $("viewer"), stage = $("stage"), panes = [...stage.querySelectorAll(".pane")];
  const slides = { wipe: 50, blend: 60 };
  let zoom = 1, x = 0, y = 0;

  const mode = () => stage.dataset.mode;

  const place = () => {
    if (!open) return;
    for (const pane of panes) {
      const port = pane.querySelector(".port"), sheet = pane.querySelector(".sheet");
      const width = open.width || 1, height = open.height || 1;
      const scale = Math.min(port.clientWidth / width, port.clientHeight / height);
      sheet.style.width = width * scale + "px";
      sheet.style.height = height * scale + "px";
      sheet.style.transform = `translate(-50%, -50%) translate(${x}px, ${y}px) scale(${zoom})`;
    }
    const share = slides[mode()];
    if (share !== undefined) {
      $("slide").value = share;
      stage.style.setProperty("--slide", share);
      const port = panes[0].querySelector(".port");
      $("edge").style.left = panes[0].offsetLeft + (port.clientWidth * share) / 100 + "px";
      $("edge").style.top = panes[0].offsetTop + "px";
      $("edge").style.height = port.clientHeight + "px";
    }
    $("zoom").textContent = `${+zoom.toPrecision(2)}x`;
  };

  const scaled = (factor, at) => {
    const next = Math.min(32, Math.max(1, zoom * factor)), port = panes[0].querySelector(".port");
    const from = at || { x: port.clientWidth / 2, y: port.clientHeight / 2 };
    const dx = from.x - port.clientWidth / 2, dy = from.y - port.clientHeight / 2;
    x = dx - ((dx - x) * next) / zoom;
    y = dy - ((dy - y) * next) / zoom;
    zoom = next;
    if (zoom === 1) x = y = 0;
    place();
  };
  const fit = () => { zoom = 1; x = y = 0; place(); };

  const set = (name) => {
    stage.dataset.mode = name;
    viewer.querySelector(`input[name=mode][value=${name}]`).checked = true;
    $("slide-field").hidden = name === "side";
    $("slide-label").textContent = name === "wipe" ? "Query to reconstruction" : "Strength of the map";
    place();
  };
  const slide = (share) => { slides[mode()] = Math.min(100, Math.max(0, share)); place(); };

  const facts = (list, rows) => {
    list.replaceChildren(...rows.filter(([, value]) => value !== null).map(([name, value]) => {
      const row = make("div");
      row.append(make("dt", "", name), make("dd", "", value));
      return row;
    }));
  };

  const view = (at) => {
    const image = images[shown[at]];
    if (!image) return;
    current = at;
    open = image;
    $("viewer-name").textContent = image.path;
    $("viewer-place").textContent = `${at + 1} of ${shown.length}`;
    $("previous").disabled = at === 0;
    $("next").disabled = at === shown.length - 1;
    const from = sources(image);
    panes.forEach((pane, i) => {
      const picture = pane.querySelector("img");
      picture.alt = `${VIEWS[i] || ""} of ${image.name}`;
      picture.hidden = !from[i];
      pane.classList.toggle("empty", !from[i]);
      if (from[i]) picture.src = from[i];
      else picture.removeAttribute("src");
    });
    stage.querySelectorAll(".boxes").forEach((over, i) => {
      const placard = VIEWS[i] === "Reconstruction" && !data.reconstructs;
      over.replaceChildren(...(placard ? [] : boxes(image)));
    });
    $("viewer-marks").replaceChildren(markers(image));
    pressed($("viewer-marks"), image);
    $("boxes-field").hidden = !image.boxes.length;
    facts($("facts"), [
      ["verdict", image.odd ? "anomalous" : "normal"], ["score", number(image.score, 5)],
      ["threshold", number(data.threshold, 5)], ["rank", image.rank === null ? null : String(image.rank)],
      ["p-value", number(image.p)], ["q-value", image.q === null ? null : number(image.q)],
      ["size", image.width ? `${image.width} x ${image.height} pixels` : null],
      ["regions", image.boxes.length && image.boxes[0][4] ? "the hottest place, below the level of normal images" : String(image.boxes.length)],
    ]);
    facts($("terms"), data.terms.map((term, i) => [term, number(image.terms[i]) +
      (image.less[i] === null ? "" : ` (above ${number(image.less[i], 3)} %)`)]));
    $("mismatch").hidden = !image.mismatch.length;
    $("mismatch").textContent = `It differs from all normal images in more than its content: ${image.mismatch.join("; ")}.`;
    $("nearest").hidden = !image.nearest.length;
    $("nearest").textContent = "Nearest training images: " +
      image.nearest.map(([path, distance]) => `${path} (${number(distance, 3)})`).join(", ") + ".";
    if (!viewer.open) viewer.showModal();
    fit();
  };
  for (const pane of panes) {
    const picture = pane.querySelector("img");
    picture.addEventListener("load", () => {
      picture.classList.toggle("pixels", picture.naturalWidth <= 32 && picture.naturalHeight <= 32);
    });
  }

  viewer.addEventListener("close", () => { open = null; go(current); });
  $("close").addEventListener("click", () => viewer.close());
  $("previous").addEventListener("click", () => view(current - 1));
  $("next").addEventListener("click", () => view(current + 1));
  $("in").addEventListener("click", () => scaled(1.5));
  $("out").addEventListener("click", () => scaled(1 / 1.5));
  $("fit").addEventListener("click", fit);
  $("modes").addEventListener("input", (event) => set(event.target.value));
  $("slide").addEventListener("input", (event) => slide(+event.target.value));
  const regions = () => viewer.classList.toggle("unmarked", !$("boxes").checked);
  $("boxes").addEventListener("input", regions);

  const ports = (event) => event.target.closest(".port");
  const inside = (port, event) => {
    const box = port.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  stage.addEventListener("wheel", (event) => {
    const port = ports(event);
    if (!port) return;
    event.preventDefault();
    scaled(Math.exp(-event.deltaY / 400), inside(port, event));
  }, { passive: false });
  let drag = null;
  stage.addEventListener("pointerdown", (event) => {
    const port = ports(event);
    if (!port || event.button) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag = { port, wipes: mode() === "wipe" && zoom === 1, x: event.clientX - x, y: event.clientY - y };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (drag.wipes) { slide((100 * inside(drag.port, event).x) / drag.port.clientWidth); return; }
    if (zoom === 1) return;
    x = event.clientX - drag.x;
    y = event.clientY - drag.y;
    place();
  });
  for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, () => { drag = null; });

  // --- light and dark ---

  const themes = ["auto", "light", "dark"];
  const remember = (name) => { try { localStorage.setItem("anoscan-theme", name); } catch { /* no storage in private windows */ } };
  const remembered = () => { try { return localStorage.getItem("anoscan-theme"); } catch { return null; } };
  const theme = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").querySelector("span").textContent = name;
  };
  const turn = () => {
    const now = document.documentElement.dataset.theme || "auto";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    theme(next);
    remember(next);
  };
  theme(themes.includes(remembered()) ? remembered() : "auto");
  $("theme").addEventListener("click", turn);

  // --- keys ---

  const help = $("help");
  $("keys").addEventListener("click", () => help.showModal());
  $("help-close").addEventListener("click", () => help.close());
  const choose = (verdict) => {
    form.querySelector(`input[name=verdict][value="${verdict}"]`).checked = true;
    apply();
  };

  const everywhere = { t: turn, "?": () => help.showModal() };
  const inViewer = {
    c: () => mark(open, ANOMALY), f: () => mark(open, NORMAL),
    ArrowLeft: () => view(current - 1), ArrowRight: () => view(current + 1),
    1: () => set("side"), 2: () => set("wipe"), 3: () => set("blend"),
    "+": () => scaled(1.5), "=": () => scaled(1.5), "-": () => scaled(1 / 1.5), 0: fit,
    ",": () => slide(slides[mode()] - 5), ".": () => slide(slides[mode()] + 5),
    b: () => { $("boxes").checked = !$("boxes").checked; regions(); },
  };
  const focused = () => {
    const item = document.activeElement.closest("#grid li");
    return item && images[shown[+item.dataset.place]];
  };
  const inList = {
    c: () => mark(focused(), ANOMALY), f: () => mark(focused(), NORMAL),
    ArrowLeft: () => go(current - 1), ArrowRight: () => go(current + 1),
    ArrowUp: () => go(current - columns), ArrowDown: () => go(current + columns),
    Home: () => go(0), End: () => go(shown.length - 1), Enter: () => view(current),
    "/": () => $("name").focus(), a: () => choose("1"), n: () => choose("0"), x: reset,
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const tag = event.target.tagName, types = event.target.type;
    if (tag === "SELECT" || (tag === "INPUT" && types !== "checkbox" && (!viewer.open || types !== "radio"))) {
      if (event.key === "Escape" && !viewer.open) event.target.blur();
      return;
    }
    if (event.key === "Enter" && tag === "BUTTON" && !event.target.classList.contains("card")) return;
    if (event.key === "Enter" && (tag === "SUMMARY" || tag === "A")) return;
    const action = (viewer.open ? inViewer : inList)[event.key] || everywhere[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  // --- start ---

  addEventListener("scroll", soon, { passive: true });
  new ResizeObserver(() => { if (!printing) { redraw(); place(); } }).observe(grid);
  addEventListener("resize", place);
  addEventListener("beforeprint", () => {
    printing = true;
    document.body.classList.add("printing");
    document.body.dataset.printed = shown.length > PRINTED ? `The first ${PRINTED} of ${shown.length} images.` : "";
    render();
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.body.classList.remove("printing");
    redraw();
  });
  document.addEventListener("DOMContentLoaded", redraw);
  for (const id of ["tools", "filters", "review"]) $(id).hidden = false;
  recall();
  set("side");
  apply();
  tell();
})();

// Zoom, pan, hover, and the legend's buttons.
"use strict";

(() => {
  const element = (id) => document.getElementById(id);
  const model = unpack(JSON.parse(element("data").textContent));
  const strip = element("strip"), canvas = element("lanes"), tip = element("tip"), shown = element("shown");
  const buttons = [...element("legend").querySelectorAll("button")];
  const actions = model.lanes.reduce((sum, lane) => sum + lane.ends.length, 0);
  const mean = actions ? model.end * model.lanes.length / actions : model.end;
  const least = Math.min(model.end, mean * 2);
  const state = { from: 0, to: model.end, only: -1, place: -1 };
  const pointers = new Map();
  let moved = false, queued = false;

  const box = () => layout(model, canvas.clientWidth);
  const timeAt = (x) => state.from + (x - box().gutter) / box().plot * (state.to - state.from);

  function draw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      drawStrip(strip, model, state);
      drawLanes(canvas, model, state);
      const step = (state.to - state.from) / 1000;
      const text = (time) => bare(time, model.makespan, step, model.unit);
      const all = moment(model.makespan, model.makespan, step, model.unit);
      shown.textContent = `${text(state.from)} to ${text(state.to)} of ${all}`;
    });
  }

  function show(from, span) {
    span = Math.min(Math.max(span, least), model.end);
    state.from = Math.min(Math.max(from, 0), model.end - span);
    state.to = state.from + span;
    draw();
  }

  function zoom(factor, around) {
    const span = state.to - state.from, wanted = Math.min(Math.max(span * factor, least), model.end);
    show(around - (around - state.from) * wanted / span, wanted);
  }

  const pan = (share) => show(state.from + share * (state.to - state.from), state.to - state.from);
  const middle = () => (state.from + state.to) / 2;

  function hide() {
    tip.hidden = true;
    if (state.place >= 0) { state.place = -1; draw(); }
  }

  function hover(event) {
    const frame = canvas.getBoundingClientRect(), sizes = box();
    const x = event.clientX - frame.left, y = event.clientY - frame.top;
    const row = rowAt(model, sizes, y);
    if (row < 0 || x < sizes.gutter || x > sizes.gutter + sizes.plot) return hide();
    const lane = model.lanes[row];
    const reach = event.pointerType === "touch" ? 10 : 3;
    const found = hit(lane, timeAt(x), reach / sizes.plot * (state.to - state.from));
    if (!found) return hide();
    fillTip(describe(model, lane, found));
    const beside = found.index !== undefined && BESIDE[lane.kinds[found.index]];
    const place = beside ? -1 : found.noop === undefined ? lane.places[found.index] : found.noop;
    if (place !== state.place) { state.place = place; draw(); }
    const top = laneTop(model, sizes, row);
    const below = top + sizes.lane + 4, above = top - tip.offsetHeight - 4;
    const up = above + frame.top >= 0 && below + tip.offsetHeight + frame.top > window.innerHeight;
    tip.style.top = `${up ? above : below}px`;
    tip.style.left = `${Math.min(Math.max(x - tip.offsetWidth / 2, 0), canvas.clientWidth - tip.offsetWidth)}px`;
  }

  function fillTip({ title, rows, lines }) {
    const make = (tag, name, text) => {
      const made = document.createElement(tag);
      if (name) made.className = name;
      if (text !== undefined) made.textContent = text;
      return made;
    };
    tip.replaceChildren(make("strong", "", title));
    for (const { job, text } of rows) {
      const row = make("div", "row"), words = make("span");
      words.append(make("b", "", model.jobs[job]), ` ${text}`);
      row.append(make("i", `swatch c${job % model.palette.base.length}`), words);
      tip.append(row);
    }
    for (const line of lines) tip.append(make("div", "faint", line));
    tip.hidden = false;
  }

  function down(event) {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event.clientX);
    moved = false;
  }

  function move(event) {
    if (!pointers.has(event.pointerId)) return hover(event);
    const before = [...pointers.values()];
    const step = event.clientX - pointers.get(event.pointerId);
    if (!moved && Math.abs(step) < 4) return undefined;
    moved = true;
    hide();
    pointers.set(event.pointerId, event.clientX);
    canvas.classList.add("dragging");
    if (pointers.size === 1) return pan(-step / box().plot);
    const after = [...pointers.values()], left = canvas.getBoundingClientRect().left;
    const apart = (xs) => Math.max(20, Math.abs(xs[0] - xs[1]));
    return zoom(apart(before) / apart(after), timeAt((after[0] + after[1]) / 2 - left));
  }

  function up(event) {
    pointers.delete(event.pointerId);
    if (!pointers.size) canvas.classList.remove("dragging");
    if (!moved && event.type === "pointerup") hover(event);
  }

  function wheel(event) {
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const amount = (sideways && event.deltaX ? event.deltaX : event.deltaY) * (event.deltaMode ? 30 : 1);
    const whole = state.to - state.from >= model.end;
    // With nothing to zoom out of, the wheel scrolls the page.
    if (whole && (sideways || amount > 0)) return;
    event.preventDefault();
    hide();
    if (sideways) pan(amount / box().plot);
    else zoom(Math.exp(amount * 0.002), timeAt(event.clientX - canvas.getBoundingClientRect().left));
  }

  function key(event) {
    const does = { ArrowLeft: () => pan(-0.15), ArrowRight: () => pan(0.15), "+": () => zoom(0.6, middle()),
      "=": () => zoom(0.6, middle()), "-": () => zoom(1 / 0.6, middle()), 0: () => show(0, model.end), Escape: hide };
    if (!does[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does[event.key]();
  }

  function stripTo(event) {
    if (event.type === "pointermove" && !event.buttons) return;
    const { gutter, plot } = box(), span = state.to - state.from;
    const x = event.clientX - strip.getBoundingClientRect().left;
    show((x - gutter) / plot * model.makespan - span / 2, span);
  }

  function choose(button) {
    const job = Number(button.dataset.job);
    state.only = state.only === job ? -1 : job;
    for (const other of buttons) other.setAttribute("aria-pressed", Number(other.dataset.job) === state.only);
    draw();
  }

  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  // A finger leaves when it is lifted: what a tap shows stays until the next tap.
  canvas.addEventListener("pointerleave", (event) => { if (!pointers.size && event.pointerType !== "touch") hide(); });
  document.addEventListener("pointerdown", (event) => { if (event.target !== canvas) hide(); });
  canvas.addEventListener("wheel", wheel, { passive: false });
  canvas.addEventListener("keydown", key);
  strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); stripTo(event); });
  strip.addEventListener("pointermove", stripTo);
  element("in").addEventListener("click", () => zoom(0.6, middle()));
  element("out").addEventListener("click", () => zoom(1 / 0.6, middle()));
  element("all").addEventListener("click", () => show(0, model.end));
  for (const button of buttons) button.addEventListener("click", () => choose(button));
  new ResizeObserver(draw).observe(canvas.parentElement);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // A long plan opens on its first places, wide enough to be told apart.
  const wide = box().plot * mean / model.end;
  show(0, wide >= 7 ? model.end : model.end * wide / 12);
})();

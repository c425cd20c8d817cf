// Draws the strip (the whole run) and the lanes (a window of time) on their canvases.
"use strict";

const AXIS = 30, STRIP_AXIS = 18, RIGHT = 10;
// Above the lanes of a group, its name.
const GROUP = 22;
// Lanes whose blocks are narrower than this (pixels, on average) are drawn as columns of shares.
const NARROWEST = 2.5, COLUMN = 2;
// From this width of blocks on, marks have room.
const WIDE = 9;
// Opacity of the grey that stands for other jobs once one is chosen.
const OTHERS = 0.3;

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(
    ["ink", "soft", "line", "idle", "card", "accent"].map((name) => [name, read(name)]));
}

function readable(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255);
  return 0.299 * r + 0.587 * g + 0.114 * b > 0.56 ? "#10161d" : "#ffffff";
}

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

function layout(model, width) {
  const count = model.lanes.length, narrow = width < 560;
  const lane = count <= 8 ? 36 : count <= 16 ? 26 : count <= 48 ? 18 : 12;
  const gutter = narrow ? 56 : 66;
  const box = { lane, gutter, gap: lane > 20 ? 5 : 2, plot: Math.max(40, width - gutter - RIGHT) };
  return { ...box, height: laneTop(model, box, count) + 4 };
}

// Where the lane of this row begins; behind the last one, where it ends.
function laneTop(model, box, row) {
  const last = model.lanes[Math.min(row, model.lanes.length - 1)];
  return AXIS + row * box.lane + (model.groups && last ? GROUP * (last.replica + 1) : 0);
}

// The row at a height, -1 beside the lanes.
const rowAt = (model, box, y) =>
  model.lanes.findIndex((_, row) => y >= laneTop(model, box, row) && y < laneTop(model, box, row) + box.lane);

function font(ctx, size, align = "left", weight = 400) {
  ctx.font = `${weight} ${size}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textAlign = align;
  ctx.textBaseline = "middle";
}

function drawTicks(ctx, model, box, view, colours) {
  const span = view.to - view.from;
  const last = bare(view.to, model.makespan, span / 1000, model.unit);
  font(ctx, 11.5, "center");
  const step = niceStep(span, box.plot / (ctx.measureText(last).width + 26));
  for (let t = Math.ceil(view.from / step - 1e-9) * step; t <= view.to + step * 1e-6; t += step) {
    const x = box.gutter + (t - view.from) / span * box.plot;
    ctx.fillStyle = colours.line;
    ctx.fillRect(Math.round(x), box.top, 1, box.bottom - box.top);
    const text = bare(Math.abs(t) < step / 2 ? 0 : t, model.makespan, step, model.unit);
    const half = ctx.measureText(text).width / 2;
    ctx.fillStyle = colours.soft;
    ctx.fillText(text, Math.min(Math.max(x, box.gutter + half), box.gutter + box.plot + RIGHT - half), box.text);
  }
}

// Columns of shares: the chosen job at the bottom, then colour by colour; idle time is left open.
function drawColumns(ctx, model, shares, { x, width, overlap, y, height }, only, colours) {
  const palette = model.palette.base, slots = palette.length + 2;
  const heights = new Float64Array(shares.length / slots);
  for (const slot of [palette.length, ...palette.keys(), palette.length + 1]) {
    const other = only >= 0 && slot !== palette.length;
    const job = slot < palette.length ? slot : only % palette.length;
    ctx.fillStyle = other || slot > palette.length ? colours.soft : palette[job];
    ctx.globalAlpha = other ? OTHERS : 1;
    for (let c = 0; c < heights.length; c++) {
      const part = shares[c * slots + slot] * height;
      if (part <= 0) continue;
      heights[c] += part;
      ctx.fillRect(x + c * width, y + height - heights[c], width + overlap, part);
    }
  }
  ctx.globalAlpha = 1;
}

function drawStrip(canvas, model, state) {
  const height = 74, ctx = prepare(canvas, height), colours = theme();
  const { gutter, plot } = layout(model, canvas.clientWidth);
  const box = { y: 6, height: height - STRIP_AXIS - 6 };
  const bottom = box.y + box.height;
  ctx.fillStyle = colours.idle;
  ctx.fillRect(gutter, box.y, plot, box.height);
  const scale = plot / model.makespan;
  // A hair wider, or seams show where columns do not end on a pixel.
  const columnBox = { ...box, x: gutter, width: model.overview.width * scale, overlap: 0.3 };
  drawColumns(ctx, model, binColumns(model, state.only), columnBox, state.only, colours);
  const whole = { from: 0, to: model.makespan };
  drawTicks(ctx, model, { gutter, plot, top: bottom, bottom: bottom + 4, text: height - 7 }, whole, colours);
  font(ctx, 11, "right");
  ctx.fillStyle = colours.soft;
  ctx.fillText("busy", gutter - 7, box.y + 6);
  ctx.fillText("100%", gutter - 7, box.y + 20);
  ctx.fillText(axisName(model), gutter - 9, height - 7);
  if (model.end < model.makespan * 0.999) {
    const x = gutter + model.end * scale;
    ctx.globalAlpha = 0.62;
    ctx.fillStyle = colours.card;
    ctx.fillRect(x, box.y, gutter + plot - x, box.height);
    ctx.globalAlpha = 1;
    font(ctx, 12, "center", 600);
    if (gutter + plot - x > 120) {
      ctx.fillStyle = colours.ink;
      ctx.fillText("not in the lanes", (x + gutter + plot) / 2, box.y + box.height / 2);
    }
  }
  const x = gutter + state.from * scale, w = Math.max(3, (state.to - state.from) * scale);
  ctx.strokeStyle = colours.accent;
  ctx.lineWidth = 2;
  ctx.strokeRect(x, box.y - 3, w, box.height + 6);
}

const axisName = (model) => (model.unit === "load" ? "load" : `time, ${scaleFor(model.makespan, model.unit)[0]}`);

function drawLanes(canvas, model, state) {
  const box = layout(model, canvas.clientWidth), colours = theme();
  const ctx = prepare(canvas, box.height);
  const lanesBottom = laneTop(model, box, model.lanes.length);
  drawTicks(ctx, model, { ...box, top: AXIS - 6, bottom: lanesBottom, text: 12 }, state, colours);
  font(ctx, 11, "right");
  ctx.fillText(axisName(model), box.gutter - 9, 12);
  const every = box.lane < 14 ? 2 : 1;
  model.lanes.forEach((lane, row) => {
    const y = laneTop(model, box, row);
    if (model.groups && lane.stage === 0) drawGroup(ctx, model.groups[lane.replica], y, box, colours);
    font(ctx, Math.min(box.gutter < 60 ? 11.5 : 12.5, box.lane), "right");
    ctx.fillStyle = colours.ink;
    if (row % every === 0) ctx.fillText(laneName(model, lane), box.gutter - 7, y + (box.lane - box.gap) / 2);
    if (!model.groups && lane.replica > 0 && lane.stage === 0) {
      ctx.fillStyle = colours.soft;
      ctx.fillRect(0, y - box.gap / 2 - 0.5, box.gutter + box.plot, 1);
    }
    ctx.save();
    ctx.beginPath();
    ctx.rect(box.gutter, y, box.plot, box.lane);
    ctx.clip();
    drawLane(ctx, model, lane, { ...box, y, height: box.lane - box.gap }, state, colours);
    ctx.restore();
  });
}

function drawGroup(ctx, name, y, box, colours) {
  font(ctx, 12, "left", 600);
  ctx.fillStyle = colours.ink;
  ctx.clearRect(box.gutter, y - GROUP + 3, ctx.measureText(name).width + 8, GROUP - 5);
  ctx.fillText(name, box.gutter + 2, y - GROUP / 2 + 2);
}

const laneName = (model, lane) =>
  (model.allReplicas > 1 ? `r${lane.replica} s${lane.stage}` : `stage ${lane.stage}`);

function drawLane(ctx, model, lane, box, state, colours) {
  const scale = box.plot / (state.to - state.from);
  const at = (time) => box.gutter + (time - state.from) * scale;
  ctx.fillStyle = colours.idle;
  ctx.fillRect(box.gutter, box.y, box.plot, box.height);
  if (model.end < state.to) ctx.clearRect(at(model.end), box.y, box.plot, box.height);
  const first = firstAfter(lane, state.from), end = firstAfter(lane, state.to) + 1;
  const count = Math.min(end, lane.ends.length) - first;
  if (box.plot / count < NARROWEST) {
    const wanted = { from: state.from, width: COLUMN / scale, count: Math.ceil(box.plot / COLUMN), only: state.only };
    const columnBox = { ...box, x: box.gutter, width: COLUMN, overlap: 0 };
    drawColumns(ctx, model, columns(model, lane, wanted), columnBox, state.only, colours);
    return;
  }
  for (let i = first; i < first + count; i++) drawBlock(ctx, model, lane, i, at, box, state, colours);
  const wide = box.plot / count > WIDE;
  // Behind the first stage, a step that was measured comes later than its backward.
  const stepped = model.groups && lane.kinds.includes("s") ? "s" : "b";
  for (let i = first; i < first + count; i++) {
    if (lane.kinds[i] === stepped && model.places[lane.places[i]].done) drawStep(ctx, at(lane.ends[i]), box, colours, wide);
  }
  drawNoops(ctx, lane, at, box, colours);
}

function drawBlock(ctx, model, lane, i, at, box, state, colours) {
  const x = at(lane.starts[i]), full = at(lane.ends[i]) - x;
  if (BESIDE[lane.kinds[i]]) return drawBeside(ctx, lane.kinds[i], { x, y: box.y, width: full, height: box.height }, colours);
  if (lane.kinds[i] === "s") {
    ctx.fillStyle = colours.soft;
    ctx.fillRect(x, box.y, Math.max(1, full), box.height);
    return;
  }
  const place = model.places[lane.places[i]];
  const shades = lane.kinds[i] === "f" ? model.palette.forward : model.palette.backward;
  const width = Math.max(0.6, full - (full > 4 ? 1 : full > 2 ? 0.4 : 0));
  let y = box.y + box.height;
  for (const segment of place.segments) {
    const height = segment.share * box.height, colour = shades[segment.job % shades.length];
    y -= height;
    const other = state.only >= 0 && segment.job !== state.only;
    ctx.globalAlpha = other ? OTHERS * (lane.kinds[i] === "f" ? 0.7 : 1.3) : 1;
    ctx.fillStyle = other ? colours.soft : colour;
    ctx.fillRect(x, y, width, height);
    if (place.kind === 1) hatch(ctx, x, y, width, height, colours.card);
    ctx.globalAlpha = 1;
    if (width > 54 && height > 11 && !other) {
      drawLabel(ctx, model.jobs[segment.job], ` ${segment.step}`, { x: x + 5, y: y + height / 2, room: width - 9 },
        place.kind === 1 ? [colours.ink, colours.card] : [readable(colour), null]);
    }
  }
  if (state.place === lane.places[i]) {
    ctx.strokeStyle = colours.ink;
    ctx.lineWidth = 2;
    ctx.strokeRect(x + 1, box.y + 1, Math.max(1, width - 2), box.height - 2);
  }
}

// Waits hatched the other way than evals, sends as a thin line.
function drawBeside(ctx, kind, { x, y, width, height }, colours) {
  ctx.fillStyle = colours.soft;
  if (kind === "t") return ctx.fillRect(x, y + height / 2 - 2, Math.max(0.6, width), 4);
  ctx.globalAlpha = 0.5;
  hatch(ctx, x, y, width, height, colours.soft, true);
  ctx.globalAlpha = 1;
  return undefined;
}

// The name, shortened to fit, and what follows it; with a halo where the ground is not even.
function drawLabel(ctx, name, tail, { x, y, room }, [colour, halo]) {
  font(ctx, 11);
  let length = name.length;
  const text = () => (length < name.length ? `${name.slice(0, length)}…${tail}` : name + tail);
  while (length > 0 && ctx.measureText(text()).width > room) length -= Math.max(1, Math.floor(length / 8));
  if (length < Math.min(3, name.length)) return;
  if (halo) {
    ctx.strokeStyle = halo;
    ctx.lineWidth = 4;
    ctx.lineJoin = "round";
    ctx.strokeText(text(), x, y);
  }
  ctx.fillStyle = colour;
  ctx.fillText(text(), x, y);
}

// Lines that rise to the right, or fall.
function hatch(ctx, x, y, width, height, colour, falls = false) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, width, height);
  ctx.clip();
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  for (let offset = -height; offset < width; offset += 6) {
    ctx.moveTo(x + offset, falls ? y : y + height);
    ctx.lineTo(x + offset + height, falls ? y + height : y);
  }
  ctx.stroke();
  ctx.restore();
}

// A line with a flag where there is room, else a short line: steps can follow every few blocks.
function drawStep(ctx, x, box, colours, wide) {
  ctx.fillStyle = colours.ink;
  ctx.fillRect(x - 1, box.y, wide ? 1.5 : 1, wide ? box.height : box.height / 3);
  if (!wide) return;
  ctx.beginPath();
  ctx.moveTo(x - 4, box.y);
  ctx.lineTo(x + 3.5, box.y);
  ctx.lineTo(x - 0.25, box.y + 5);
  ctx.fill();
}

function drawNoops(ctx, lane, at, box, colours) {
  ctx.beginPath();
  for (const [, time] of lane.noops) {
    ctx.moveTo(at(time), box.y);
    ctx.lineTo(at(time), box.y + box.height);
  }
  // On a plain ground, or it would not be seen between two blocks.
  ctx.strokeStyle = colours.idle;
  ctx.lineWidth = 4;
  ctx.stroke();
  ctx.setLineDash([3, 2]);
  ctx.strokeStyle = colours.soft;
  ctx.lineWidth = 1.5;
  ctx.stroke();
  ctx.setLineDash([]);
}

// What is drawn: unpacks the page's data, finds actions, and words what a block says.
"use strict";

const KINDS = { f: "forward", b: "backward", s: "optimizer step" };
// What a stage is in while it does not compute.
const BESIDE = {
  u: "waiting for a forward of the stage before", d: "waiting for a backward of the stage behind",
  p: "waiting for the plan", t: "sending",
};
const PLACE_KINDS = ["train", "eval", "no-op"];
const SEGMENT_FIELDS = 6;
// Rows of jobs in a tip; a place may mix dozens.
const MOST_ROWS = 12;

function unpack(data) {
  const places = data.places.map(([kind, load, ...flat]) => {
    const segments = [];
    for (let i = 0; i < flat.length; i += SEGMENT_FIELDS) {
      const [job, step, samples, tokens, own, done] = flat.slice(i, i + SEGMENT_FIELDS);
      segments.push({ job, step, samples, tokens, load: own, share: own / load, done: done === 1 });
    }
    // As the strip has it: the first job at the bottom.
    segments.sort((a, b) => a.job - b.job);
    return { kind, load, segments, done: segments.some((segment) => segment.done) };
  });
  const lanes = data.lanes.map((lane) => unpackLane(lane, data.tick));
  return { ...data, places, lanes };
}

// Times are gaps and durations in ticks; places are differences to the last of the same kind.
function unpackLane(packed, tick) {
  const count = packed.kinds.length;
  const lane = {
    replica: packed.replica, stage: packed.stage, kinds: packed.kinds, noops: packed.noops,
    places: new Int32Array(count), starts: new Float64Array(count), ends: new Float64Array(count),
  };
  const last = {};
  let time = 0;
  for (let i = 0; i < count; i++) {
    const kind = packed.kinds[i];
    last[kind] = (last[kind] || 0) + packed.places[i];
    lane.places[i] = last[kind];
    time += packed.gaps[i];
    lane.starts[i] = time * tick;
    time += packed.spans[i];
    lane.ends[i] = time * tick;
  }
  return lane;
}

// Index of the first action that ends after `time`.
function firstAfter(lane, time) {
  let low = 0, high = lane.ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane.ends[middle] > time) high = middle; else low = middle + 1;
  }
  return low;
}

// The action at `time`, or the nearest within `slack`: {index}, {noop}, or null.
function hit(lane, time, slack) {
  let noop = null, nearest = slack / 2;
  for (const [place, at] of lane.noops) {
    if (Math.abs(at - time) <= nearest) { noop = place; nearest = Math.abs(at - time); }
  }
  if (noop !== null) return { noop };
  const next = firstAfter(lane, time);
  let found = null, least = slack;
  for (const index of [next, next - 1]) {
    if (index < 0 || index >= lane.ends.length) continue;
    const away = Math.max(lane.starts[index] - time, time - lane.ends[index], 0);
    if (away <= least && (found === null || away < least)) { found = { index }; least = away; }
  }
  return found;
}

const grouped = (value, digits = 0) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const plural = (number, what) => `${grouped(number)} ${what}${number === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(1)}%`;

// The unit in which times up to `most` are read easily: its name and its size.
function scaleFor(most, unit) {
  if (unit === "load") return ["load units", 1];
  return [["s", 1], ["ms", 1e-3], ["µs", 1e-6]].find((entry) => most >= entry[1]) || ["µs", 1e-6];
}

// A time with decimals down to `step`, in the unit that times up to `most` have.
function moment(value, most, step, unit) {
  return `${bare(value, most, step, unit)} ${scaleFor(most, unit)[0]}`;
}

function bare(value, most, step, unit) {
  const size = scaleFor(most, unit)[1];
  return grouped(value / size, decimals(step / size));
}

function decimals(step) {
  return step > 0 ? Math.min(6, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9))) : 0;
}

// Round steps of 1, 2 or 5 times a power of ten, at most `most` of them in `span`.
function niceStep(span, most) {
  const rough = span / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough * (1 - 1e-9));
}

// Lanes of one group stand together, such as those that were planned and those that were measured.
const where = (model, lane) =>
  model.groups ? `${model.groups[lane.replica]}, stage ${lane.stage}`
  : model.allReplicas > 1 ? `replica ${lane.replica}, stage ${lane.stage}` : `stage ${lane.stage}`;

// What a block says: {title, rows: [{job, text}], lines}.
function describe(model, lane, found) {
  if (found.noop !== undefined) {
    return {
      title: `Place ${grouped(found.noop)}: no-op, ${where(model, lane)}`, rows: [],
      lines: ["no microbatch enters here"],
    };
  }
  const kind = lane.kinds[found.index], start = lane.starts[found.index];
  const span = lane.ends[found.index] - start;
  if (BESIDE[kind]) {
    const said = BESIDE[kind], line = when(model, start, span);
    return { title: `${said[0].toUpperCase()}${said.slice(1)}, ${where(model, lane)}`, rows: [], lines: [line] };
  }
  const place = model.places[lane.places[found.index]];
  const named = place.kind === 1 ? "eval forward" : KINDS[kind];
  const told = kind === "s" ? place.segments.filter((segment) => segment.done) : place.segments;
  const rows = told.slice(0, MOST_ROWS).map((segment) => ({
    job: segment.job, text: kind === "s" ? `step ${segment.step}` : segmentText(place, segment),
  }));
  const lines = [];
  if (told.length > MOST_ROWS) lines.push(`and ${plural(told.length - MOST_ROWS, "more job")}`);
  if (kind !== "s") {
    const tokens = place.segments.reduce((sum, segment) => sum + segment.tokens, 0);
    const fill = percent(place.load / model.capacity);
    lines.push(`${plural(tokens, "token")}; load ${grouped(place.load)} of ${grouped(model.capacity)} (${fill})`);
  }
  lines.push(when(model, start, span));
  return { title: `Place ${grouped(lane.places[found.index])}: ${named}, ${where(model, lane)}`, rows, lines };
}

function when(model, start, span) {
  const longest = Math.max(span, model.tick);
  return `start ${moment(start, model.makespan, longest / 100, model.unit)}, ` +
    `duration ${moment(span, longest, longest / 100, model.unit)}`;
}

function segmentText(place, segment) {
  const step = place.kind === 1 ? `eval after step ${segment.step}` : `step ${segment.step}`;
  const last = segment.done ? (place.kind === 1 ? ", completes it" : ", completes the step") : "";
  return `${step}: ${plural(segment.samples, "sample")}, ${plural(segment.tokens, "token")}${last}`;
}

// Shares of time are kept by colour, with a slot more for the chosen job and one for optimizer steps:
// by job, the whole of 8,000 places on 16 stages took 1.7 s to draw.
function slotOf(model, job, only) {
  const colours = model.palette.base.length;
  return job < 0 ? colours + 1 : job === only ? colours : job % colours;
}

// Of each column of equal time, one share of the lane's time a slot.
function columns(model, lane, { from, width, count, only }) {
  const slots = model.palette.base.length + 2, found = new Float64Array(count * slots);
  const until = from + width * count, steps = [{ job: -1, share: 1 }];
  for (let i = firstAfter(lane, from); i < lane.ends.length && lane.starts[i] < until; i++) {
    if (BESIDE[lane.kinds[i]]) continue;
    const segments = lane.kinds[i] === "s" ? steps : model.places[lane.places[i]].segments;
    let start = Math.max(lane.starts[i], from);
    const end = Math.min(lane.ends[i], until);
    for (let c = Math.min(count - 1, Math.floor((start - from) / width)); start < end && c < count; c++) {
      const edge = c === count - 1 ? end : Math.min(end, from + (c + 1) * width);
      for (const { job, share } of segments) {
        found[c * slots + slotOf(model, job, only)] += share * Math.max(0, edge - start) / width;
      }
      start = Math.max(start, edge);
    }
  }
  return found;
}

// The same of the strip's bins, which are [job, thousandths, ...].
function binColumns(model, only) {
  const slots = model.palette.base.length + 2, { bins } = model.overview;
  const found = new Float64Array(bins.length * slots);
  bins.forEach((flat, c) => {
    for (let i = 0; i < flat.length; i += 2) found[c * slots + slotOf(model, flat[i], only)] += flat[i + 1] / 1000;
  });
  return found;
}

if (typeof module !== "undefined") {
  module.exports = { unpack, firstAfter, hit, describe, columns, binColumns, niceStep, moment };
}

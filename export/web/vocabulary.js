// Reads vocabulary files (safetensors with one metadata key), and packs several of them into one input of the graph.

import { sha256 } from "./sha256.js";

export const ORIGINAL = "original"; // label of the vocabulary that the detector is deployed with
const LEARNED = "learned"; // name of every run's learned vocabulary
export const SUFFIX = ".vocab.safetensors";
const VERSIONS = [1, 2]; // 2: with box_offsets, content or background
const NEEDED = ["names", "kind", "guide_mode", "detector", "text_tower", "guide"];
const DIGESTED = [...NEEDED, "background"];
const KEYS = [...NEEDED, "version", "provenance"];
const OPTIONAL = ["content", "background"];
const EMBED_DIM = 512;
const PER_CLASS = { embeddings: null, thresholds: [], calibration: [2], nms_iou: [], box_offsets: [4] }; // shapes
const UNIT_TOLERANCE = 1e-4;
const MAX_OFFSET = Math.fround(0.4);
const MAX_ROWS = 2 ** 20; // prompts in all
const MAX_METADATA = 2 ** 24; // characters
const MAX_DEPTH = 300; // lists and objects inside one another
const TOKENS = /("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[{}[\]]|-?\d[-+.\deE]*/g; // of JSON
const LEAST_SCORE = 0.001; // thresholds of learned vocabularies let nothing below through
const ROUNDING = 1e-5; // the inverse of a calibration rounds, so the graph's threshold is lowered by this share

/** Reads a file: 8 bytes with the size of the header, a JSON header, raw little-endian float32. Refuses any other. */
export function readVocabulary(buffer, fileName) {
  try {
    const vocabulary = read(buffer);
    return { ...vocabulary, label: labelOf(vocabulary, fileName) };
  } catch (error) {
    const reason = error instanceof Refusal ? error.message : "is not a vocabulary file, or it is damaged or cut short";
    throw new Error(`${fileName} ${reason}.`);
  }
}

/** The name of the file. All runs call theirs `learned`: that has the label which `export --name` gave, if it gave one. */
function labelOf({ provenance }, fileName) {
  const name = fileName.endsWith(SUFFIX) ? fileName.slice(0, -SUFFIX.length) : fileName;
  const { label } = provenance;
  const usable = typeof label === "string" && /[^\p{Z}]/u.test(label) && !/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/u.test(label);
  return name === LEARNED && usable && label !== ORIGINAL ? label : name;
}

/** The content of a file, after all checks of docs/formats.md. */
function read(buffer) {
  const start = buffer.byteLength >= 8 ? 8 + Number(new DataView(buffer).getBigUint64(0, true)) : Infinity;
  need(start <= buffer.byteLength, "is not a vocabulary file, or it is cut short");
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(buffer, 8, start - 8));
  need(text[0] === "{", "is not a vocabulary file");
  const { __metadata__: metadata, ...header } = strictJson(text, Infinity);
  need(metadata && String(Object.keys(metadata)) === "prompt-tune", "is a safetensors file, but not a vocabulary of prompt-tune");
  need(metadata["prompt-tune"].length <= MAX_METADATA, "has more than 16 MiB of metadata");
  const about = strictJson(metadata["prompt-tune"], 1);
  const { version, names, content } = about;
  need(VERSIONS.includes(version), `has format version ${version}; this page reads versions ${VERSIONS.join(" and ")}`);
  need(KEYS.every((key) => key in about), "lacks a part of its metadata");
  need(Object.keys(about).every((key) => KEYS.includes(key) || OPTIONAL.includes(key)), "has metadata that this page does not know");
  need(Object.keys(header).every((name) => name in PER_CLASS), "has a tensor that this page does not know");
  need(version === (OPTIONAL.some((key) => key in about) || "box_offsets" in header ? 2 : 1), "has a version that does not go with its parts");
  checkOrigin(about);

  const nPrompts = header.embeddings.shape[1];
  need(nPrompts > 0 && names.length * nPrompts <= MAX_ROWS, "is damaged: wrong shapes");
  const tensors = {};
  let begin = 0;
  for (const [name, entry] of Object.entries(header).sort(([, one], [, other]) => one.data_offsets[0] - other.data_offsets[0])) {
    const shape = [names.length, ...(name === "embeddings" ? [nPrompts, EMBED_DIM] : PER_CLASS[name])];
    const end = begin + 4 * shape.reduce((product, side) => product * side);
    const wanted = { dtype: "F32", shape, data_offsets: [begin, end] };
    need(Object.keys(entry).length === 3, "is damaged: wrong header");
    need(Object.keys(wanted).every((key) => JSON.stringify(entry[key]) === JSON.stringify(wanted[key])), `is damaged: ${name} is not ${shape} float32`);
    need(start + end <= buffer.byteLength, "is cut short");
    tensors[name] = new Float32Array(buffer.slice(start + begin, start + end));
    begin = end;
  }
  need(start + begin === buffer.byteLength, "has more data than its tensors");
  checkValues(about, tensors);
  if (content !== undefined) {
    const order = Object.keys(tensors).sort();
    const digested = [...DIGESTED.filter((key) => key in about).map((key) => about[key]), order.map((name) => [name, header[name].shape])];
    const parts = order.map((name) => new Uint8Array(tensors[name].buffer));
    const digest = sha256(new TextEncoder().encode(JSON.stringify(digested)), ...parts);
    need(content === digest, "was damaged or changed: its content does not have the digest that it states");
  }
  return {
    ...about,
    nPrompts,
    embeddings: tensors.embeddings, // (count, nPrompts, 512)
    thresholds: tensors.thresholds, // (count,)
    calibration: tensors.calibration ?? null, // (count, 2): scale and shift of the logit
    nmsIou: tensors.nms_iou ?? null, // (count,): a class's own limit of overlap, applied after the graph's
    boxOffsets: tensors.box_offsets ?? null, // (count, 4): how far edges of its boxes move
    hidden: hiddenRows(about), // background rows, which guide and score and are never shown
  };
}

/** Refuses names, kinds and digests that are unknown or do not go together. */
function checkOrigin({ names, kind, guide_mode, provenance, background, ...digests }) {
  need(Array.isArray(names) && names.length > 0, "has no list of names");
  need(names.every((name) => typeof name === "string" && /[^\p{Z}]/u.test(name)), "has a name that is empty or no text");
  need(!names.some((name) => /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/u.test(name)), "has a name with control characters");
  need(new Set(names).size === names.length, "has a name twice");
  need(["original", "learned", "plain"].includes(kind), "is of an unknown kind");
  if (background !== undefined) {
    const pair = (one) => Array.isArray(one) && one.length === 2 && one.every((part) => typeof part === "string");
    need(Array.isArray(background) && background.every(pair), "has a background that is no list of pairs");
    need(!background.some(([, text]) => /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/u.test(text)), "has a background with control characters");
    const marked = background.map(([name]) => name);
    const known = new Set(marked);
    const inOrder = names.filter((name) => known.has(name));
    need(marked.length === inOrder.length && marked.every((name, i) => name === inOrder[i]), "has a background that does not name its rows in order");
    need(marked.length > 0 && marked.length < names.length && kind === "original", "cannot have this background");
  }
  need(["original", "own"].includes(guide_mode), "has an unknown guide mode");
  for (const what of ["detector", "text_tower", "guide"]) {
    const any = what === "detector" && kind === "plain" && digests[what] === "";
    need(any || (typeof digests[what] === "string" && /^[0-9a-f]{64}$/.test(digests[what])), `is damaged: ${what} is no digest`);
  }
  need(provenance && typeof provenance === "object" && !Array.isArray(provenance), "is damaged: provenance is no object");
}

/** The rows of the names in `background`. */
function hiddenRows({ names, background = [] }) {
  const hidden = new Set(background.map(([name]) => name));
  return new Set(names.flatMap((name, row) => (hidden.has(name) ? [row] : [])));
}

/** Refuses numbers outside their ranges, NaN among them. */
function checkValues({ kind, guide_mode, guide }, { embeddings, thresholds, calibration, nms_iou, box_offsets }) {
  for (let at = 0; at < embeddings.length; at += EMBED_DIM) {
    let sum = 0;
    for (let i = at; i < at + EMBED_DIM; i++) sum += embeddings[i] * embeddings[i];
    need(Math.abs(Math.sqrt(sum) - 1) <= UNIT_TOLERANCE, "is damaged: embeddings are not of unit length");
  }
  const all = (numbers, rule) => numbers === undefined || numbers.every(rule);
  need(thresholds !== undefined && all(thresholds, (one) => one >= 0 && one <= 1), "is damaged: thresholds are not in 0..1");
  need(all(calibration, (one, i) => Number.isFinite(one) && (i % 2 === 1 || one > 0)), "is damaged: wrong calibration");
  need(all(nms_iou, (one) => one > 0 && one <= 1), "is damaged: nms_iou is not in 0..1");
  need(all(box_offsets, (one) => Math.abs(one) <= MAX_OFFSET), "is damaged: box_offsets are out of range");
  need(kind !== "original" || box_offsets === undefined, "is an original vocabulary with box_offsets");
  const own = kind === "original" || guide_mode === "own";
  need(!own || sha256(new Uint8Array(embeddings.buffer)) === guide, "is damaged: its guide is not its own digest");
}

/** A JSON text, refused if a key stands twice, it is nested too deep, or numbers are not finite, or in its `whole` outermost levels not counts. */
export function strictJson(text, whole) {
  const value = JSON.parse(text);
  const open = []; // the keys of each object around; lists have none
  for (const [token, string, colon] of text.matchAll(TOKENS)) {
    if (string !== undefined) {
      if (colon === undefined) continue;
      const key = JSON.parse(string);
      need(!open.at(-1).has(key), "is damaged: a key stands twice");
      open.at(-1).add(key);
    } else if (token === "{" || token === "[") {
      need(open.push(new Set()) <= MAX_DEPTH, "is nested too deep");
    } else if (token === "}" || token === "]") {
      open.pop();
    } else need(Number.isFinite(Number(token)) && (open.length > whole || /^\d+$/.test(token)), `has a number ${token.slice(0, 20)}`);
  }
  return value;
}

class Refusal extends Error {}

function need(holds, reason) {
  if (!holds) throw new Refusal(reason);
}

/** Refuses a vocabulary that was made for another detector, text tower or guide. */
export function checkMadeFor(vocabulary, detector, original) {
  const wanted = { detector, text_tower: original.text_tower, guide: vocabulary.guide };
  if (vocabulary.kind === "plain" && vocabulary.detector === "") wanted.detector = ""; // made for any detector
  if (vocabulary.kind === "learned" && vocabulary.guide_mode === "original") wanted.guide = original.guide;
  for (const [what, digest] of Object.entries(wanted)) {
    if (vocabulary[what] === digest) continue;
    const [was, here] = [vocabulary[what].slice(0, 12), digest.slice(0, 12)];
    throw new Error(
      `“${vocabulary.label}” was made for ${what.replace("_", " ")} ${was}, but this bundle has ${here}. ` +
        "Use a vocabulary that was learned on this bundle's detector and original vocabulary.",
    );
  }
}

/**
 * Vocabularies one after the other, with prompts repeated up to the largest number. Row i is class i of the graph.
 * No vocabularies become one row of zeros, which `graphConf` keeps from being found: WebGPU takes no empty input.
 */
export function pack(vocabularies) {
  const nPrompts = Math.max(1, ...vocabularies.map((part) => part.nPrompts));
  const classes = vocabularies.flatMap((part) => part.names.map((name, id) => ({ part, name, id })));
  const rows = Math.max(1, classes.length);
  const embeddings = new Float32Array(rows * nPrompts * EMBED_DIM);
  classes.forEach(({ part, id }, row) => {
    for (let prompt = 0; prompt < nPrompts; prompt++) {
      const from = (id * part.nPrompts + (prompt % part.nPrompts)) * EMBED_DIM;
      embeddings.set(part.embeddings.subarray(from, from + EMBED_DIM), (row * nPrompts + prompt) * EMBED_DIM);
    }
  });
  return { classes, embeddings, dims: [rows, nPrompts, EMBED_DIM] };
}

/** The score above which a detection counts: `conf` if it is a number, else the class's own threshold. */
export function limitOf({ part, id }, conf) {
  return conf === null ? part.thresholds[id] : Math.fround(conf);
}

/** The rows of one image, with boxes as the labels of their class are drawn: edges move by shares of width or height. */
export function moved(rows, packed) {
  return rows.map((row) => {
    const { part, id } = packed.classes[row[6]];
    if (part.boxOffsets === null) return row;
    const sizes = [Math.fround(row[3] - row[1]), Math.fround(row[4] - row[2])];
    const changed = Float32Array.from(row);
    for (let edge = 0; edge < 4; edge++) {
      changed[1 + edge] = row[1 + edge] + Math.fround(part.boxOffsets[4 * id + edge] * sizes[edge % 2]);
    }
    return changed;
  });
}

/** The rows of one image, without boxes that overlap a better one of the class by more than the class's limit. */
export function distinct(rows, packed) {
  const kept = new Map(); // by class
  for (const row of rows) { // the graph sorts them by class, the best first
    const { part, id } = packed.classes[row[6]];
    if (!kept.has(row[6])) kept.set(row[6], []);
    const better = kept.get(row[6]);
    if (part.nmsIou === null || !better.some((one) => overlap(one, row) > part.nmsIou[id])) better.push(row);
  }
  return [...kept.values()].flat();
}

/** The lowest uncalibrated score that can count; 1, which no score exceeds, if there are no classes. */
export function graphConf(packed, conf) {
  let lowest = 1;
  for (const one of packed.classes) {
    if (one.part.hidden.has(one.id)) continue;
    const [scale, shift] = calibrationOf(one);
    const limit = limitOf(one, conf);
    const changed = scale !== 1 || shift !== 0;
    lowest = Math.min(lowest, changed ? sigmoid((logit(limit) - shift) / scale) * (1 - ROUNDING) : limit);
  }
  const floor = conf === null && packed.classes.every(({ part }) => part.kind !== "original");
  return floor ? Math.max(lowest, LEAST_SCORE) : lowest;
}

/** A score with its logit scaled and shifted, if the class's vocabulary has a calibration. */
export function calibrated(score, one) {
  const [scale, shift] = calibrationOf(one);
  return scale === 1 && shift === 0 ? score : Math.fround(sigmoid(scale * logit(score) + shift));
}

/** Intersection over union of the boxes in two rows. */
function overlap(one, other) {
  return iou(one.subarray(1, 5), other.subarray(1, 5));
}

/** Intersection over union of two boxes: x1, y1, x2, y2. */
export function iou(one, other) {
  const side = (from, to) => Math.max(0, Math.min(one[to], other[to]) - Math.max(one[from], other[from]));
  const area = (box) => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);
  const shared = side(0, 2) * side(1, 3);
  return shared / Math.max(area(one) + area(other) - shared, 1e-9);
}

function calibrationOf({ part, id }) {
  return part.calibration === null ? [1, 0] : [part.calibration[2 * id], part.calibration[2 * id + 1]];
}

function logit(score) {
  return Math.log(score) - Math.log1p(-score);
}

function sigmoid(value) {
  return value >= 0 ? 1 / (1 + Math.exp(-value)) : Math.exp(value) / (1 + Math.exp(value));
}

// Reads vocabulary files (safetensors with one metadata key), and packs several of them into one input of the graph.

export const ORIGINAL = "original"; // label of the vocabulary that the detector is deployed with
export const SUFFIX = ".vocab.safetensors";
const VERSIONS = [1, 2]; // 2: with box_offsets
const EMBED_DIM = 512;
const LEAST_SCORE = 0.001; // thresholds of learned vocabularies let nothing below through
const ROUNDING = 1e-5; // the inverse of a calibration rounds, so the graph's threshold is lowered by this share

/** Reads a file: 8 bytes with the size of the header, a JSON header, raw little-endian float32. */
export function readVocabulary(buffer, fileName) {
  const size = buffer.byteLength >= 8 ? Number(new DataView(buffer).getBigUint64(0, true)) : Infinity;
  if (8 + size > buffer.byteLength) throw new Error(`${fileName} is not a vocabulary file, or it is cut short.`);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const text = header.__metadata__?.["prompt-tune"];
  if (text === undefined) throw new Error(`${fileName} is a safetensors file, but not a vocabulary of prompt-tune.`);
  const about = JSON.parse(text);
  if (!VERSIONS.includes(about.version)) {
    throw new Error(`${fileName} has format version ${about.version}; this page reads versions ${VERSIONS.join(" and ")}.`);
  }
  const tensor = (name) => {
    const [begin, end] = header[name].data_offsets;
    return new Float32Array(buffer.slice(8 + size + begin, 8 + size + end));
  };
  const [count, nPrompts, width] = header.embeddings.shape;
  if (count !== about.names.length || width !== EMBED_DIM) throw new Error(`${fileName} is damaged: wrong shapes.`);
  return {
    ...about,
    label: fileName.endsWith(SUFFIX) ? fileName.slice(0, -SUFFIX.length) : fileName,
    nPrompts,
    embeddings: tensor("embeddings"), // (count, nPrompts, 512)
    thresholds: tensor("thresholds"), // (count,)
    calibration: header.calibration ? tensor("calibration") : null, // (count, 2): scale and shift of the logit
    nmsIou: header.nms_iou ? tensor("nms_iou") : null, // (count,): a class's own limit of overlap, applied after the graph's
    boxOffsets: header.box_offsets ? tensor("box_offsets") : null, // (count, 4): how far edges of its boxes move
  };
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
  const side = (from, to) => Math.max(0, Math.min(one[to], other[to]) - Math.max(one[from], other[from]));
  const area = (row) => (row[3] - row[1]) * (row[4] - row[2]);
  const shared = side(1, 3) * side(2, 4);
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

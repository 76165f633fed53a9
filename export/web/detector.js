// Runs a bundle's graph in onnxruntime-web, with any number of learned vocabularies beside the original one.

import { letterbox, toImage } from "./letterbox.js";
import { markHidden } from "./overlap.js";
import { calibrated, checkMadeFor, distinct, graphConf, limitOf, moved, ORIGINAL, pack, readVocabulary, strictJson } from "./vocabulary.js";

const GRAPH_VERSION = 1;
const STRIDES = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const MAX_IMAGE_SIZE = 8192;
const IOU = 0.7; // the graph drops a box that overlaps a better one of its class by more than this
const NOTHING = pack([]);
// The WASM-only build is half the size of the build that can do both.
const RUNTIMES = {
  webgpu: "./onnxruntime/ort.webgpu.bundle.min.mjs",
  wasm: "./onnxruntime/ort.wasm.bundle.min.mjs",
};

export class Detector {
  /** device: "auto", "webgpu" or "wasm". Only "auto" falls back to WASM, and `note` then says why. */
  static async open(graph, originalFile, device) {
    const detector = new Detector();
    const bytes = new Uint8Array(graph);
    detector.metadata = readMetadata(bytes);
    detector.original = readVocabulary(originalFile, ORIGINAL);
    if (detector.original.kind !== "original") throw new Error("original.vocab.safetensors is not an original vocabulary. Export the run again.");
    checkMadeFor(detector.original, detector.metadata.detector, detector.original);
    detector.learned = new Map();
    detector.note = "";
    if (device !== "wasm") {
      try {
        await detector.#start(bytes, "webgpu");
        return detector;
      } catch (error) {
        if (device === "webgpu") throw new Error(`WebGPU cannot be used here: ${firstLine(error)} Choose WASM.`);
        detector.note = `WebGPU cannot be used: ${firstLine(error)}`;
      }
    }
    await detector.#start(bytes, "wasm");
    return detector;
  }

  /** Adds a learned or plain vocabulary. Returns its label, class names and guide mode. */
  load(buffer, fileName) {
    const vocabulary = readVocabulary(buffer, fileName);
    if (vocabulary.kind === "original") throw new Error(`${fileName} is an original vocabulary; add one of kind learned or plain.`);
    checkMadeFor(vocabulary, this.metadata.detector, this.original);
    const { label, names, guide_mode: guideMode } = vocabulary;
    if (label === ORIGINAL || this.learned.has(label)) {
      throw new Error(`“${label}” is loaded already. Remove it first, or rename the file.`);
    }
    this.learned.set(label, vocabulary);
    return { label, names, guideMode };
  }

  unload(label) {
    this.learned.delete(label);
  }

  /**
   * Detections in one picture, in the order of prompt_tune.runtime, with boxes in its pixels.
   * rgba: 4 bytes per pixel. labels: the vocabularies that are on. originalConf, learnedConf: thresholds; null means
   * each class's own. overlap: "keep", "learned" or "score", see `markHidden`.
   */
  async detect(rgba, width, height, { labels, originalConf, learnedConf, overlap = "keep" }) {
    const started = performance.now();
    const { input, placed } = letterbox(rgba, width, height, this.metadata.image_size);
    const ready = performance.now();
    const chosen = [...this.learned.values()].filter((part) => labels.includes(part.label));
    const original = pack([this.original]); // the guide, whether it is shown or not
    const together = pack(chosen.filter((part) => part.guide_mode === "original"));
    const shown = labels.includes(ORIGINAL) ? graphConf(original, originalConf) : 1;
    const tables = await this.#run(input, original, together, shown, graphConf(together, learnedConf));
    const groups = [
      [labels.includes(ORIGINAL) ? tables[0] : [], original, originalConf],
      [tables[1], together, learnedConf],
    ];
    for (const part of chosen.filter((one) => one.guide_mode === "own")) {
      const own = pack([part]); // it guides the network itself, so it needs its own pass
      groups.push([(await this.#run(input, own, NOTHING, graphConf(own, learnedConf), 1))[0], own, learnedConf]);
    }
    const computed = performance.now();
    const all = groups.flatMap(([rows, packed, conf]) => keep(rows, packed, conf, placed));
    const detections = markHidden(all, new Map([[ORIGINAL, this.original], ...this.learned]), overlap);
    const times = { prepare: ready - started, network: computed - ready, total: performance.now() - started };
    return { detections, times, passes: groups.length - 1 };
  }

  /** Makes the session and runs it once, so that an unsuitable device shows here. */
  async #start(bytes, device) {
    if (device === "webgpu" && !(await globalThis.navigator?.gpu?.requestAdapter())) throw new Error("This browser offers no GPU.");
    try {
      this.ort = await import(RUNTIMES[device]);
    } catch {
      throw new Error("onnxruntime-web is not beside the page. Run `npm ci` in the page's folder, then reload the page.");
    }
    this.ort.env.logLevel = "error";
    this.session = await this.ort.InferenceSession.create(bytes, {
      executionProviders: [device],
      logSeverityLevel: 3, // errors only: on WebGPU it warns of operators that run on the CPU, which is intended
    });
    this.device = device;
    const side = this.metadata.image_size;
    await this.#run(new Float32Array(3 * side * side), pack([this.original]), NOTHING, 1, 1);
  }

  /** One pass: rows [image, x1, y1, x2, y2, score, class] for both inputs. */
  async #run(input, original, learned, originalConf, learnedConf) {
    const side = this.metadata.image_size;
    const tensor = (data, dims) => new this.ort.Tensor("float32", data, dims);
    const outputs = await this.session.run({
      images: tensor(input, [1, 3, side, side]),
      original: tensor(original.embeddings, original.dims),
      learned: tensor(learned.embeddings, learned.dims),
      iou: tensor(Float32Array.of(IOU), [1]),
      original_conf: tensor(Float32Array.of(originalConf), [1]),
      learned_conf: tensor(Float32Array.of(learnedConf), [1]),
    });
    return ["original_detections", "learned_detections"].map((name) => {
      const { data, dims } = outputs[name];
      return Array.from({ length: dims[0] }, (_, row) => data.subarray(row * dims[1], (row + 1) * dims[1]));
    });
  }
}

/** The rows of one group of vocabularies that are above their thresholds, as detections. */
function keep(rows, packed, conf, placed) {
  const found = [];
  for (const row of distinct(moved(rows, packed), packed)) {
    const one = packed.classes[row[6]];
    if (one.part.hidden.has(one.id)) continue; // a background row
    const score = calibrated(row[5], one);
    const box = toImage(row.subarray(1, 5), placed);
    if (score <= limitOf(one, conf) || box[2] <= box[0] || box[3] <= box[1]) continue;
    found.push({ vocabulary: one.part.label, class: one.name, class_id: one.id, score, box_xyxy: box });
  }
  return found;
}

/** prompt-tune's entry in the metadata of an ONNX file: field 14 of the protobuf, with a key (1) and a value (2). */
function readMetadata(bytes) {
  try {
    for (const entry of fields(bytes, 14)) {
      const text = new TextDecoder("utf-8", { ignoreBOM: true });
      const [key, value] = [1, 2].map((number) => text.decode(fields(entry, number)[0]));
      if (key !== "prompt-tune") continue;
      const metadata = strictJson(value, Infinity);
      if (canBe(metadata)) return metadata;
    }
  } catch {
    // not a protobuf: the error below
  }
  throw new Error("detector.onnx is not a prompt-tune graph of a version that this page knows. Export the run again.");
}

/** Whether metadata can be true, since a forged graph could state anything, and whether this page runs such a graph. */
function canBe(metadata) {
  const { version, detector, strides, image_size: size, embed_dim: width = 512, precision = "float32" } = metadata;
  const { slots = null, suppression = true } = metadata; // graphs for other runtimes
  const rising = Array.isArray(strides) && strides.length > 0 && strides.length <= 8 && strides.every((one, i) => i === 0 || one > strides[i - 1]);
  return (
    version === GRAPH_VERSION &&
    slots === null &&
    suppression === true &&
    typeof detector === "string" &&
    /^[0-9a-f]{64}$/.test(detector) &&
    rising &&
    strides.every((one) => STRIDES.includes(one)) &&
    Number.isInteger(size) &&
    size > 0 &&
    size <= MAX_IMAGE_SIZE &&
    size % strides.at(-1) === 0 &&
    width === 512 &&
    ["float32", "float16"].includes(precision)
  );
}

/** The byte strings of one field of a protobuf message. */
function fields(bytes, wanted) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw new Error("cut short");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (Math.floor(tag / 8) === wanted) found.push(bytes.subarray(at, at + length));
      at += length;
    } else throw new Error("unknown kind of field");
  }
  return found;
}

function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0];
}

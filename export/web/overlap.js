// One box for an object, if wanted: which of an original and a learned detection on the same object is hidden.

import { iou, ORIGINAL } from "./vocabulary.js";

const SAME_BOX_IOU = 0.7;

/**
 * Marks detections as `hidden`, true or false; "keep" marks nothing. parts: the vocabularies by label.
 * "learned" hides the original one if the learned one is above its class's threshold. "score" hides the one that is
 * less far above its class's threshold, as a share of the way from the threshold to 1. Hidden ones hide nothing.
 */
export function markHidden(detections, parts, how) {
  if (how === "keep") return detections;
  const rows = detections.map((one, row) => {
    const limit = parts.get(one.vocabulary).thresholds[one.class_id];
    return { ...one, row, original: one.vocabulary === ORIGINAL, margin: (one.score - limit) / Math.max(1 - limit, 1e-9), rivals: [] };
  });
  const originals = rows.filter((one) => one.original);
  for (const one of rows.filter(({ original }) => !original)) {
    const { boxOffsets } = parts.get(one.vocabulary);
    for (const other of originals) {
      if (iou(one.box_xyxy, drawnAs(other.box_xyxy, boxOffsets, one.class_id)) < SAME_BOX_IOU) continue;
      one.rivals.push(other.row);
      other.rivals.push(one.row);
    }
  }
  const hidden = new Set();
  const surest = [...rows].sort((one, other) => other.margin - one.margin || one.original - other.original);
  for (const one of surest) {
    const hides = how === "score" ? !hidden.has(one.row) : !one.original && one.margin > 0;
    if (hides) one.rivals.forEach((row) => hidden.add(row));
  }
  return detections.map((one, row) => ({ ...one, hidden: hidden.has(row) }));
}

/** A box as the labels of a class are drawn: edges move by shares of width or height. */
function drawnAs(box, offsets, id) {
  if (offsets === null) return box;
  const sizes = [box[2] - box[0], box[3] - box[1]];
  return box.map((value, edge) => value + offsets[4 * id + edge] * sizes[edge % 2]);
}

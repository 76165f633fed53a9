// Boxes and labels: original classes thin and muted, learned ones thick and bright, in the colours of prompt_tune.

import { ORIGINAL } from "./vocabulary.js";

const OUTLINE = "rgb(15 18 22)"; // a dark edge keeps a box visible on a background of its own colour
const INK = "rgb(24 26 30)";
const PAPER = "rgb(250 250 248)";
const MOST_INSET = 8; // equal boxes that are drawn inside one another

/**
 * Draws detections: high scores over low ones, learned classes over original ones.
 * scale: canvas pixels per pixel of the boxes. unit: one CSS pixel of type and lines, in canvas pixels.
 */
export function drawDetections(context, detections, { scale, unit, highlighted = null }) {
  const { width, height } = context.canvas;
  const font = Math.max(10, 13 * unit);
  const rank = (one) => (one === highlighted ? 2 : one.vocabulary === ORIGINAL ? 0 : 1);
  const order = [...detections].sort((one, other) => rank(one) - rank(other) || one.score - other.score);
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  const scaled = order.map((one) => one.box_xyxy.map((value) => value * scale));
  const boxes = apart(scaled.reverse(), 5 * unit).reverse();
  for (const [row, one] of order.entries()) {
    const [x1, y1, x2, y2] = boxes[row];
    const line = (one === highlighted ? 4.5 : one.vocabulary === ORIGINAL ? 1.5 : 3) * unit;
    for (const [style, extra] of [[OUTLINE, 1.5 * unit], [colourOf(one), 0]]) {
      context.strokeStyle = style;
      context.lineWidth = line + extra;
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  }
  const taken = [];
  const labels = order.reverse().map((one) => {
    const text = labelOf(one);
    const size = { width: context.measureText(text).width + 0.6 * font, height: 1.35 * font };
    const place = placeOf(one.box_xyxy.map((value) => value * scale), size, { width, height }, taken);
    taken.push(place);
    return { one, text, place };
  });
  for (const { one, text, place } of labels.reverse()) {
    context.fillStyle = colourOf(one);
    context.strokeStyle = OUTLINE;
    context.lineWidth = unit;
    context.beginPath();
    context.roundRect(place.x, place.y, place.width, place.height, 3 * unit);
    context.fill();
    context.stroke();
    context.fillStyle = isLight(colourOf(one)) ? INK : PAPER;
    context.fillText(text, place.x + 0.3 * font, place.y + place.height / 2 + 0.04 * font);
  }
}

/** Boxes, the most important first, of which none hides another: one equal to an earlier one goes inside it. */
export function apart(boxes, step) {
  const drawn = [];
  for (let box of boxes) {
    for (let inset = 0; inset < MOST_INSET; inset++) {
      const [x1, y1, x2, y2] = [box[0] + step, box[1] + step, box[2] - step, box[3] - step];
      const equal = drawn.some((other) => Math.max(...box.map((value, edge) => Math.abs(value - other[edge]))) < step);
      if (!equal || Math.min(x2 - x1, y2 - y1) < 2 * step) break;
      box = [x1, y1, x2, y2];
    }
    drawn.push(box);
  }
  return drawn;
}

/** The colour of a detection's class, from its name alone. */
export function colourOf({ class: name, vocabulary }) {
  const muted = vocabulary === ORIGINAL;
  const part = (crc32(name) * 0.618034) % 1;
  const [saturation, value] = muted ? [0.42, 0.86] : [0.92, 0.95];
  const hue = part * 6;
  const channel = (shift) => {
    const k = (shift + hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return `rgb(${channel(5)} ${channel(3)} ${channel(1)})`;
}

/** Class and score, and for a learned class its vocabulary. */
function labelOf(one) {
  const text = `${one.class} ${one.score.toFixed(2)}`;
  return one.vocabulary === ORIGINAL ? text : `${text} · ${one.vocabulary}`;
}

/** Above, inside or below the box, within the picture, where it covers the other labels least. */
function placeOf([x1, y1, x2, y2], size, picture, taken) {
  const right = Math.max(picture.width - size.width, 0);
  const corners = [Math.min(Math.max(x1, 0), right), Math.min(Math.max(x2 - size.width, 0), right)].flatMap((x) =>
    [y1 - size.height, y1, y2, y2 - size.height].map((y) => ({ x, y, ...size })),
  );
  const inside = corners.filter(({ y }) => y >= 0 && y <= picture.height - size.height);
  const places = inside.length ? inside : [{ ...corners[0], y: 0 }];
  const covered = places.map((place) => taken.reduce((sum, other) => sum + overlap(place, other), 0));
  return places[covered.indexOf(Math.min(...covered))];
}

function overlap(one, other) {
  const width = Math.min(one.x + one.width, other.x + other.width) - Math.max(one.x, other.x);
  const height = Math.min(one.y + one.height, other.y + other.height) - Math.max(one.y, other.y);
  return width > 0 && height > 0 ? width * height : 0;
}

function isLight(colour) {
  const [red, green, blue] = colour.match(/\d+/g).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128; // ITU-R BT.601
}

function crc32(text) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

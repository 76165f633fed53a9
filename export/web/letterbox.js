// Fits an image to the network's input exactly as Pillow's Image.resize(BILINEAR) does. Where Pillow scales the height
// before the width (13.0 does for some tall images), rounding may differ by one step of 255.

const PAD_GREY = 114;
const PRECISION_BITS = 22; // of Pillow's fixed-point weights for 8-bit images
const TO_UNIT = Float32Array.from({ length: 256 }, (_, value) => value / 255);

/**
 * Scales an image to fit a square and centres it on grey.
 * rgba: 4 bytes per pixel. Returns float32 (3, side, side) in 0..1, and the placement, which takes boxes back.
 */
export function letterbox(rgba, width, height, side) {
  const scale = Math.min(side / height, side / width);
  const scaledWidth = Math.max(1, roundHalfEven(width * scale));
  const scaledHeight = Math.max(1, roundHalfEven(height * scale));
  const left = roundHalfEven((side - scaledWidth) / 2 - 0.1);
  const top = roundHalfEven((side - scaledHeight) / 2 - 0.1);
  const rgb = resize(rgba, width, height, scaledWidth, scaledHeight);
  const area = side * side;
  const input = new Float32Array(3 * area).fill(TO_UNIT[PAD_GREY]); // (3, side, side)
  for (let y = 0, from = 0; y < scaledHeight; y++) {
    for (let x = 0, to = (top + y) * side + left; x < scaledWidth; x++, to++, from += 3) {
      input[to] = TO_UNIT[rgb[from]];
      input[to + area] = TO_UNIT[rgb[from + 1]];
      input[to + 2 * area] = TO_UNIT[rgb[from + 2]];
    }
  }
  return { input, placed: { scale, left, top, width, height } };
}

/** A box from pixels of the network's input to pixels of the image, clipped to the image. */
export function toImage([x1, y1, x2, y2], { scale, left, top, width, height }) {
  const back = (value, border, most) => {
    const pixel = Math.fround(Math.fround(value - border) / Math.fround(scale));
    return Math.min(Math.max(pixel, 0), most);
  };
  return [back(x1, left, width), back(y1, top, height), back(x2, left, width), back(y2, top, height)];
}

/** RGBA bytes to RGB bytes of another size: a horizontal pass, then a vertical one, each rounded to bytes. */
function resize(rgba, width, height, newWidth, newHeight) {
  const across = weights(width, newWidth);
  const narrow = new Uint8Array(newWidth * height * 3); // (height, newWidth, 3)
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++, to += 3) {
      blend(rgba, (y * width + across.first[x]) * 4, 4, across, x, narrow, to);
    }
  }
  const down = weights(height, newHeight);
  const small = new Uint8Array(newWidth * newHeight * 3); // (newHeight, newWidth, 3)
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++, to += 3) {
      blend(narrow, (down.first[y] * newWidth + x) * 3, newWidth * 3, down, y, small, to);
    }
  }
  return small;
}

/** Writes one pixel of `target`: the weighted sum of pixels of `source`, `step` bytes apart, starting at byte `from`. */
function blend(source, from, step, { fixed, count, most }, index, target, to) {
  let red = 1 << (PRECISION_BITS - 1);
  let green = red;
  let blue = red;
  const end = index * most + count[index];
  for (let at = index * most; at < end; at++, from += step) {
    red += source[from] * fixed[at];
    green += source[from + 1] * fixed[at];
    blue += source[from + 2] * fixed[at];
  }
  target[to] = Math.min(red >> PRECISION_BITS, 255);
  target[to + 1] = Math.min(green >> PRECISION_BITS, 255);
  target[to + 2] = Math.min(blue >> PRECISION_BITS, 255);
}

/** Weights of a triangle filter that widens as the image shrinks. Pixel i is made from count[i] pixels from first[i] on. */
function weights(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  const most = 2 * Math.ceil(support) + 1;
  const fixed = new Int32Array(newSize * most);
  const first = new Int32Array(newSize);
  const count = new Int32Array(newSize);
  for (let i = 0; i < newSize; i++) {
    const centre = (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    count[i] = Math.min(size, Math.trunc(centre + support + 0.5)) - first[i];
    const parts = Array.from({ length: count[i] }, (_, k) =>
      Math.max(0, 1 - Math.abs((k + first[i] - centre + 0.5) * (1 / support))),
    );
    const total = parts.reduce((sum, part) => sum + part, 0);
    parts.forEach((part, k) => {
      fixed[i * most + k] = Math.trunc(0.5 + (part / total) * (1 << PRECISION_BITS));
    });
  }
  return { fixed, first, count, most };
}

/** Rounds like Python's round(): a half goes to the even neighbour. */
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

// Runs the detector in its own thread, so that the page stays responsive.

import { Detector } from "./detector.js";

let detector = null;
const calls = {
  async open({ graph, original, device }) {
    detector = null;
    detector = await Detector.open(graph, original, device);
    const { metadata, device: used, note } = detector;
    return { device: used, note, imageSize: metadata.image_size, names: detector.original.names.filter((_, row) => !detector.original.hidden.has(row)) };
  },
  load: ({ buffer, fileName }) => detector.load(buffer, fileName),
  unload: ({ label }) => detector.unload(label),
  detect: ({ rgba, width, height, wanted }) => detector.detect(new Uint8ClampedArray(rgba), width, height, wanted),
};

// calls run one after the other, in the order in which they came
let last = Promise.resolve();
addEventListener("message", ({ data: { id, name, values } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await calls[name](values) });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
});

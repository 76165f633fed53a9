// `npm ci` runs this. It copies the four files of onnxruntime-web that the page loads.

import { copyFileSync, mkdirSync } from "node:fs";

const FILES = [
  "ort.wasm.bundle.min.mjs", // CPU only
  "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.bundle.min.mjs", // WebGPU, with the CPU for the operators that it lacks
  "ort-wasm-simd-threaded.asyncify.wasm",
];

mkdirSync("onnxruntime", { recursive: true });
for (const name of FILES) copyFileSync(`node_modules/onnxruntime-web/dist/${name}`, `onnxruntime/${name}`);

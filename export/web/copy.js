// Run by `npm ci`: copies the four files of onnxruntime-web that the page loads.

import { copyFileSync, mkdirSync } from "node:fs";

const FILES = [
  "ort.wasm.bundle.min.mjs", // CPU alone
  "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.bundle.min.mjs", // WebGPU, and the CPU for what it lacks
  "ort-wasm-simd-threaded.asyncify.wasm",
];

mkdirSync("onnxruntime", { recursive: true });
for (const name of FILES) copyFileSync(`node_modules/onnxruntime-web/dist/${name}`, `onnxruntime/${name}`);

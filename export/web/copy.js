// `npm ci` runs this. It keeps the four files of onnxruntime-web that the page loads, and nothing else of the packages.

import { mkdirSync, renameSync, rmSync } from "node:fs";

const FILES = [
  "ort.wasm.bundle.min.mjs", // CPU only
  "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.bundle.min.mjs", // WebGPU, with the CPU for the operators that it lacks
  "ort-wasm-simd-threaded.asyncify.wasm",
];

mkdirSync("onnxruntime", { recursive: true });
for (const name of FILES) renameSync(`node_modules/onnxruntime-web/dist/${name}`, `onnxruntime/${name}`);
rmSync("node_modules", { recursive: true });

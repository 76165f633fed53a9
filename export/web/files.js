// Where a bundle and pictures come from: the server of the page, chosen files, dropped files.

import { ORIGINAL, SUFFIX } from "./vocabulary.js";

const GRAPH = "detector.onnx";
const LEARNED = `learned${SUFFIX}`;

/** The bundle in the folder above the page's, or null if the server has none there. */
export async function servedBundle() {
  const get = (name) => fetch(new URL(`../${name}`, import.meta.url)).catch(() => null);
  const graph = await get(GRAPH);
  const original = graph?.ok ? await get(ORIGINAL + SUFFIX) : null;
  if (!original?.ok) return null;
  const learned = await get(LEARNED);
  return {
    graph: await graph.arrayBuffer(),
    original: await original.arrayBuffer(),
    learned: learned?.ok ? [{ fileName: LEARNED, buffer: await learned.arrayBuffer() }] : [],
  };
}

/** Sorts chosen files: a whole bundle or null, vocabularies beside it, and pictures. */
export async function sorted(files) {
  const graph = files.find((file) => file.name.endsWith(".onnx"));
  const isOriginal = (file) => file.name === ORIGINAL + SUFFIX;
  const original = files.find(isOriginal);
  const pictures = files.filter((file) => file.type.startsWith("image/"));
  const read = async (file) => ({ fileName: file.name, buffer: await file.arrayBuffer() });
  const vocabularies = await Promise.all(
    files.filter((file) => file.name.endsWith(".safetensors") && !isOriginal(file)).map(read),
  );
  if (!graph) return { bundle: null, vocabularies, pictures };
  if (!original) throw new Error(`A bundle needs ${ORIGINAL + SUFFIX} beside ${graph.name}: choose both, or the folder.`);
  const bundle = { graph: await graph.arrayBuffer(), original: await original.arrayBuffer(), learned: vocabularies };
  return { bundle, vocabularies: [], pictures };
}

/** The files that were dropped, and those directly inside dropped folders. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return (await Promise.all(entries.map((entry) => (entry.isFile ? [entry] : children(entry)))))
    .flat()
    .reduce(async (found, entry) => [...(await found), await new Promise((...done) => entry.file(...done))], []);
}

/** The files in a dropped folder, which the browser gives in parts. */
async function children(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const part = await new Promise((...done) => reader.readEntries(...done));
    if (!part.length) return found.filter((entry) => entry.isFile);
    found.push(...part);
  }
}

/** The pixels of a picture file, upright, with unchanged colours, as Python reads them. */
export async function decoded(blob) {
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${blob.name ?? "The picture"} cannot be read as an image.`);
  }
}

/** Lets the user save a file. */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

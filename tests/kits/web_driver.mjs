// Uses the page as a person would, in headless Chromium, and prints what it saw.
//
//   node web_driver.mjs PLAYWRIGHT CHROMIUM URL FLAGS < steps.json
//
// steps: [[action, ...arguments], ...]; a step ends when the page is idle. Prints {results, errors, hosts}: what each step
// gave, errors in the page, and every host that was asked for something.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [playwright, executablePath, url, flags] = process.argv.slice(2);
const { chromium } = (await import(pathToFileURL(`${playwright}/index.js`).href)).default;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...JSON.parse(flags)] });
const page = await browser.newPage({ viewport: { width: 1180, height: 860 } });
page.setDefaultTimeout(240_000);
const errors = [];
const hosts = new Set();
page.on("pageerror", (error) => errors.push(String(error)));
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("request", (request) => request.url().startsWith("http") && hosts.add(new URL(request.url()).host));

const actions = {
  files: (selector, ...paths) => page.setInputFiles(selector, paths),
  click: (selector) => page.click(selector),
  set: (selector, value) => page.fill(selector, value),
  select: (selector, value) => page.selectOption(selector, value),
  shown: (selector) => page.isVisible(selector),
  text: (selector) => page.textContent(selector),
  width: () => page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]),
  resize: (width, height) => page.setViewportSize({ width, height }),
  wait: (selector, text) => page.waitForFunction(([at, part]) => document.querySelector(at).textContent.includes(part), [selector, text]).then(() => null),
  async download(selector) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(selector)]);
    return readFileSync(await download.path(), "utf8");
  },
};
try {
  await page.goto(url);
  const results = [];
  for (const [action, ...values] of JSON.parse(readFileSync(0, "utf8"))) {
    await page.waitForSelector("main[aria-busy=false]");
    results.push((await actions[action](...values)) ?? null);
  }
  await page.waitForSelector("main[aria-busy=false]");
  console.log(JSON.stringify({ results, errors, hosts: [...hosts] }));
} finally {
  await browser.close();
}
